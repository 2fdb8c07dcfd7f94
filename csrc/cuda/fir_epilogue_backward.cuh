// synthesis_epilogue_backward for the forms transposed and phases: dv, its sums over the pixels and the adjoint of the
// 4x4 FIR filter in one pass. dt[r, c] = sum_ab f[a] f[b] (dv d)[r - a + 1, c - b + 1].
#pragma once

#include "fir_epilogue.cuh"

namespace fastinv::cuda {

constexpr int kFirHalo = 4;  // columns: dv of 2 to the left and 1 to the right of a tile's; one more for dt's last
constexpr int kFirMostLanes = 4;
constexpr int kFirBackwardThreads = kFirMostLanes * (static_cast<int>(kSumTileColumns) + kFirHalo);  // 272
// Blocks of a processor. Two allow 96 registers, with which ptxas 13.0 spills one or more for sm_100 and sm_120.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kFirBackwardBlocks = 1;
#else
constexpr int kFirBackwardBlocks = 2;
#endif
constexpr int kFirStages = 3;  // rows of dnext and y on their way from DRAM

// Dynamic shared memory: operands, then two rows of values, two of noise terms and, for vectors, the stages; the sums
// take the place of all but the operands.
template <class T, int V>
constexpr size_t fir_backward_shared(int lanes, int threads) {
  using C = compute_t<T>;
  const size_t rows = (2 * V + 2) * sizeof(C), stages = sizeof(T) * V == 16 ? kFirStages * 2 * 16 : 0;
  const size_t sums = kSynthesisSums * V * sizeof(C);
  return 2 * lanes * V * sizeof(C) + threads * (rows + stages > sums ? rows + stages : sums);
}

// A block takes one tile of the sums and `lanes` vectors of channels. Thread (x, y) owns column y - 2 of dv and column
// y of dt, counted from the tile's first; it marches down the rows: dv of its column into a row of shared memory, one
// barrier, then the filter along the row (its own value from registers) and its share in the four rows of dt that are
// not done yet. Rows of shared memory take turns, so one barrier a row is enough. dnext and y come by cp.async, three
// rows ahead, into places that no other thread reads.
//
// Bytes of an element (half): 2 of dnext, 2 of y, 2 of dt; the halo of 3 rows and 3 columns comes mostly from L2.
// Instructions of a vector of 8, by count and unmeasured: 2 copies and 2 reads of them, 16 conversions, 56 to 72 for dv
// and its sums, 2 + 6 shared accesses, 64 filter, 8 scale, 4 conversions, 1 store, 15 addresses: 25 of an element with
// the halo, or 28 us of issue on an H200 for 32 x 1024^2, where the bytes take 47 us; shared memory (24 bytes of an
// element) takes 27 us.
//
// kPicture false, for vectors without dimage: next_styles, gain and d are constant along the pixels and applied to the
// sums and to dt, not to every dv. kPicture true takes everything.
template <class T, int V, bool kPicture>
__global__ void __launch_bounds__(kFirBackwardThreads, kFirBackwardBlocks)
    fir_epilogue_backward_kernel(SynthesisEpilogueBackwardParams p, SynthesisConstants<compute_t<T>> k,
                                 FirLayout layout, FirGrid grid, bool noise_gradient) {
  using C = compute_t<T>;
  using Shared = SharedVectors<C, V>;
  constexpr bool staged = sizeof(T) * V == 16;
  const int lane = threadIdx.x, lanes = blockDim.x, threads = blockDim.x * blockDim.y,
            thread = threadIdx.y * lanes + lane;
  const FirTile tile = fir_tile(grid, blockIdx.x, V);
  const int channel = tile.channel + lane * V;
  const int column = tile.column + static_cast<int>(threadIdx.y) - 2, dt_column = column + 2;
  const bool has_channel = channel < p.channels;
  const bool inside = has_channel && column >= 0 && column < p.width;
  const bool owned = inside && column >= tile.column && column < tile.column + grid.columns;
  // The last tile also owns what dt has beyond the picture.
  const int end_row = tile.row + grid.rows < p.height ? tile.row + grid.rows : layout.rows;
  const int end_column = tile.column + grid.columns < p.width ? tile.column + grid.columns : layout.columns;
  const bool writes = has_channel && dt_column < end_column;

  FASTINV_DYNAMIC_SHARED(unsigned char, memory);
  C* scales = reinterpret_cast<C*>(memory);                                  // [lanes * V], factors of dt
  C* next_styles = scales + lanes * V;                                       // [lanes * V]
  C* rows = next_styles + lanes * V;                                         // [2][threads * V]
  C* noise_terms = rows + 2 * threads * V;                                   // [2][threads]
  T* stages = reinterpret_cast<T*>(noise_terms + 2 * threads) + thread * V;  // [kFirStages][2][threads * V]

  // 32 bits within a sample; its beginning is computed anew, as 64 bits would take registers for the whole march.
  const int place = inside ? column * p.channels + channel : 0, row_step = p.width * p.channels;
  const int dt_place = column_offset(layout, dt_column) + channel;
  const T* dnext = static_cast<const T*>(p.dnext);
  const T* y = static_cast<const T*>(p.y);

  BackwardChannels<C, V> channels;
  load_operands<kPicture>(channels, p, tile.sample, channel, has_channel);
  if (threadIdx.y == 0) {  // in registers they would cost warps
    if constexpr (!kPicture) {
      Shared::put(next_styles, lanes, lane, channels.next);
#pragma unroll
      for (int i = 0; i < V; ++i) channels.d[i] *= channels.next[i] * k.gain;
    }
    Shared::put(scales, lanes, lane, channels.d);
  }
  block_barrier();  // not observable: what the first rows, halo, make of next_styles is not used
  ChannelSums<C, V> sums;
  C pending[3][V];
#pragma unroll
  for (int i = 0; i < V; ++i) {
    sums[0][i] = sums[1][i] = sums[2][i] = sums[3][i] = sums[4][i] = C(0);
    pending[0][i] = pending[1][i] = pending[2][i] = C(0);
  }

  auto map_at = [&](int row) { return int64_t(tile.sample) * p.height * row_step + (place + row * row_step); };
  auto copy = [&](int row, int stage) {  // one group, also where there is nothing to copy
    if constexpr (staged) {
      const bool there = inside && row >= 0 && row < p.height;
      const int64_t at = there ? map_at(row) : 0;
      copy_async16(stages + (2 * stage) * threads * V, dnext + at, there);
      copy_async16(stages + (2 * stage + 1) * threads * V, y + at, there);
      copy_async_commit();
    }
  };
  auto noise_at = [&](int row) {
    if (p.noise == nullptr || !inside || row < 0 || row >= p.height) return C(0);
    const int64_t at = tile.sample * p.noise_stride + (row * p.width + column);
    return load<1>(static_cast<const C*>(p.noise) + at).values[0];
  };

  const int first = tile.row - 2;
  C noise_here = noise_at(first);
#pragma unroll
  for (int i = 0; i < kFirStages; ++i) copy(first + i, i);
#pragma unroll 1
  for (int row = first, stage = 0; row <= end_row; ++row) {
    const int turn = row & 1;
    const bool counted = owned && row >= tile.row && row - tile.row < grid.rows && row < p.height;
    Vec<T, V> g, kept;
    if constexpr (staged) {
      copy_async_wait<kFirStages - 1>();
      g = load_shared<V>(stages + (2 * stage) * threads * V);
      kept = load_shared<V>(stages + (2 * stage + 1) * threads * V);
    } else {
      const bool there = inside && row >= 0 && row < p.height;
#pragma unroll
      for (int i = 0; i < V; ++i) g.values[i] = kept.values[i] = from_compute<T>(C(0));
      if (there && dnext != nullptr) g = load<V>(dnext + map_at(row));
      if (there) kept = load<V>(y + map_at(row));
    }

    C value[V], noise_term = C(0);  // of dv, but for the factor `scale`
    if constexpr (kPicture) {
      C visible[3] = {};
      if (inside && row >= 0 && row < p.height && p.dimage != nullptr) {
        load_visible(visible, p, k, tile.sample, row * p.width + column);
      }
      const C scaled_noise = k.strength * noise_here;
      if (counted) {
        backward_point<true, true>(g, kept, visible, scaled_noise, channels, k, sums, value);
      } else {
        backward_point<true, false>(g, kept, visible, scaled_noise, channels, k, sums, value);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) noise_term += value[i];
    } else {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const C here = to_compute(kept.values[i]);
        C gradient = to_compute(g.values[i]);
        const C product = gradient * here;
        const bool passes = !(fabs(here) >= k.clamp);
        if (!passes) gradient = C(0);
        if (!(here > C(0))) gradient *= k.alpha;
        value[i] = gradient;
        if (counted) {
          sums[0][i] += product;
          if (passes) sums[2][i] += product;
          sums[3][i] += gradient * noise_here;
          sums[4][i] += gradient;
        }
      }
      if (noise_gradient) {
        C factors[V];
        Shared::get(next_styles, lanes, lane, factors);
#pragma unroll
        for (int i = 0; i < V; ++i) noise_term += value[i] * factors[i];
        noise_term *= k.gain;
      }
    }
    C* shared_row = rows + turn * threads * V;
    Shared::put(shared_row, threads, thread, value);
    if (noise_gradient) store<1>(noise_terms + turn * threads + thread, Vec<C, 1>{{has_channel ? noise_term : C(0)}});
    block_barrier();

    copy(row + kFirStages, stage);
    stage = stage + 1 < kFirStages ? stage + 1 : 0;
    noise_here = noise_at(row + 1);
    C filtered[V];
#pragma unroll
    for (int i = 0; i < V; ++i) filtered[i] = k.taps[3] * value[i];
    if (threadIdx.y + 3 < blockDim.y) {
#pragma unroll
      for (int b = 2; b >= 0; --b) {
        Shared::get(shared_row, threads, thread + (3 - b) * lanes, value);
#pragma unroll
        for (int i = 0; i < V; ++i) filtered[i] += k.taps[b] * value[i];
      }
    }
    Shared::get(scales, lanes, lane, value);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const C h = filtered[i];
      filtered[i] = (pending[0][i] + k.taps[0] * h) * value[i];
      pending[0][i] = pending[1][i] + k.taps[1] * h;
      pending[1][i] = pending[2][i] + k.taps[2] * h;
      pending[2][i] = k.taps[3] * h;
    }
    const int dt_row = row - 1;
    if (writes && dt_row >= tile.row) {
      const bool seen = dt_row <= p.height && dt_column <= p.width;  // by the filter
      Vec<T, V> result;
#pragma unroll
      for (int i = 0; i < V; ++i) result.values[i] = from_compute<T>(seen ? filtered[i] : C(0));
      const int64_t dt = int64_t(tile.sample) * (layout.rows * layout.columns * p.channels);
      store<V>(static_cast<T*>(p.du) + dt + (dt_place + row_offset(layout, dt_row)), result);
    }
    if (noise_gradient && counted && lane == 0) {
      C total = C(0);
      for (int i = 0; i < lanes; ++i) {
        total += load_shared<1>(noise_terms + turn * threads + thread + i).values[0];
      }
      const int64_t pixel = (int64_t(tile.sample) * p.height + row) * p.width + column;
      store<1>(static_cast<C*>(p.dnoise) + pixel, Vec<C, 1>{{k.strength * total}});
    }
  }

  // Sums over the tile's columns, each of at most 32 rows: four runs of 17, then a tree. All in the tile's own order.
  // The sums lie where copies of rows beyond the end still arrive.
  copy_async_wait<0>();  // not observable: the simulator does not carry out copies that nobody waits for
  block_barrier();
  const int width = lanes * V, first_column = dt_column - static_cast<int>(threadIdx.y);
  const int number = tile.row / grid.rows * static_cast<int>(grid.column_tiles) + first_column / grid.columns;
  if constexpr (!kPicture) {
    C factors[V];
    Shared::get(next_styles, lanes, lane, factors);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sums[2][i] *= factors[i];
      sums[3][i] *= factors[i] * k.gain * k.strength;
      sums[4][i] *= factors[i] * k.gain;
    }
  }
#pragma unroll
  for (int s = 0; s < kSynthesisSums; ++s) Shared::put(rows + s * threads * V, threads, thread, sums[s]);
  block_barrier();
  for (int item = thread; item < kSynthesisSums * width; item += threads) {
    const int s = item / width, c = item - s * width;
    if (tile.channel + c >= p.channels) continue;
    const C* from = rows + s * threads * V + Shared::place(threads, c / V, c % V);
    C runs[4] = {};
    for (int j = 0; j < static_cast<int>(blockDim.y); j += 4) {  // a multiple of 4, see the launcher
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        runs[r] += load_shared<1>(from + (j + r) * lanes * Shared::piece).values[0];
      }
    }
    const int64_t at = (int64_t(tile.sample) * grid.row_tiles * grid.column_tiles + number) * kSynthesisSums + s;
    store<1>(static_cast<C*>(p.sums) + at * p.channels + tile.channel + c,
             Vec<C, 1>{{(runs[0] + runs[1]) + (runs[2] + runs[3])}});
  }
}

// dnoise where the channels do not fit into one block of the kernel above: a warp for each pixel, one more pass over
// dnext and y (of at most 32 MB per sample in StyleGAN2, much of it still in L2).
template <class T, int V>
__global__ void __launch_bounds__(kFirThreads)
    fir_noise_gradient_kernel(SynthesisEpilogueBackwardParams p, SynthesisConstants<compute_t<T>> k) {
  using C = compute_t<T>;
  constexpr int warp = 32;
  const int pixels = p.height * p.width, lane = threadIdx.x % warp;
  const int64_t at = int64_t(blockIdx.x) * (kFirThreads / warp) + threadIdx.x / warp;
  const bool inside = at < p.samples * pixels;
  C total = C(0);
  if (inside) {
    const int64_t sample = at / pixels;
    C visible[3] = {};
    if (p.dimage != nullptr) load_visible(visible, p, k, sample, static_cast<int>(at - sample * pixels));
    for (int channel = lane * V; channel < p.channels; channel += warp * V) {
      Vec<T, V> g;
#pragma unroll
      for (int i = 0; i < V; ++i) g.values[i] = from_compute<T>(C(0));
      if (p.dnext != nullptr) g = load<V>(static_cast<const T*>(p.dnext) + at * p.channels + channel);
      const Vec<T, V> kept = load<V>(static_cast<const T*>(p.y) + at * p.channels + channel);
      BackwardChannels<C, V> channels;
      load_operands<true>(channels, p, sample, channel, true);
      ChannelSums<C, V> unused;
      C dv[V];
      backward_point<true, false>(g, kept, visible, C(0), channels, k, unused, dv);
#pragma unroll
      for (int i = 0; i < V; ++i) total += dv[i];
    }
  }
  for (int mask = warp / 2; mask > 0; mask /= 2) total += shuffle_xor(total, mask);
  if (inside && lane == 0) store<1>(static_cast<C*>(p.dnoise) + at, Vec<C, 1>{{k.strength * total}});
}

}  // namespace fastinv::cuda
