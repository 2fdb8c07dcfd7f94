// Chooses and launches the kernels of upfirdn2d.
#include "upfirdn2d.cuh"

namespace fastinv::cuda {

static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t size_of(Dtype dtype) { return dtype == Dtype::float64 ? 8 : dtype == Dtype::float32 ? 4 : 2; }

static bool aligned(const Upfirdn2dParams& p, int64_t bytes) {
  return (reinterpret_cast<uintptr_t>(p.input) | reinterpret_cast<uintptr_t>(p.output)) % bytes == 0;
}

// --- march ---

// Inside an image, and for the threads of a launch, the march counts in 32 bits. Half of what they hold, for paddings
// and whole blocks.
constexpr int64_t march_most = int64_t(1) << 30;

static bool fits_32_bits(const Upfirdn2dParams& p) {
  auto small = [](int64_t a, int64_t b) { return b == 0 || a <= march_most / b; };
  for (const Upfirdn2dAxis& axis : {p.x, p.y}) {
    const int64_t padding = axis.padding_before < 0 ? -axis.padding_before : axis.padding_before;
    if (!small(axis.size, 1) || !small(axis.out, 1) || !small(padding, 1) || !small(padding, p.channels)) return false;
  }
  if (!small(p.x.size, p.channels) || !small(p.x.out, p.channels)) return false;
  const int64_t in_row = p.x.size * p.channels, out_row = p.x.out * p.channels;
  return small(in_row, p.y.size) && small(out_row, p.y.out);
}

static bool can_march(const Upfirdn2dParams& p) {
  const Upfirdn2dAxis &x = p.x, &y = p.y;
  const bool one_tap = x.taps == 1 && y.taps == 1;  // only pads, crops or scales
  const bool known_factors = x.up == y.up && x.down == y.down && x.up * x.down <= 2;
  return p.dtype != Dtype::float64 && !one_tap && x.taps <= long_taps && y.taps <= long_taps && known_factors &&
         fits_32_bits(p);
}

Upfirdn2dKernel upfirdn2d_kernel(const Upfirdn2dParams& p) {
  if (can_march(p)) {
    const bool is_short = p.x.taps <= short_taps && p.y.taps <= short_taps;
    if (is_short && p.channels == 1) return Upfirdn2dKernel::planes;
    const bool vectors = p.channels * size_of(p.dtype) % 16 == 0 && aligned(p, 16);
    return is_short && vectors ? Upfirdn2dKernel::channels : Upfirdn2dKernel::pixels;
  }
  return p.one_dimensional ? Upfirdn2dKernel::two_passes : Upfirdn2dKernel::direct;
}

// Output up * m + phase - shift, for any m, begins at sample base + m * down, at up-sampled sample `tap` phases before.
// shift == up - 1 - tap makes all phases of a group begin at the same sample; planes take no shift but one tap more.
static MarchAxis march_axis(const Upfirdn2dAxis& axis, bool planes) {
  MarchAxis march{};
  march.size = static_cast<int>(axis.size);
  march.out = static_cast<int>(axis.out);
  march.taps = static_cast<int>(axis.taps);
  if (axis.up == 1) {
    march.base = static_cast<int>(-axis.padding_before);
    return march;
  }
  const int odd = static_cast<int>(axis.padding_before & 1);
  march.shift = planes ? 0 : 1 - odd;
  march.tap = planes ? odd : 1;
  march.base = static_cast<int>((odd - axis.padding_before) / 2);
  return march;
}

// Output row groups of one thread. Each thread reads TAPS - 1 rows more than it is alone in needing, so as many as
// leave a wave of threads for a large GPU.
static int64_t march_length(int64_t row_groups, int64_t columns, int taps) {
  constexpr int64_t wave = 132 * 1024;
  int64_t length = 32;
  while (length > taps && divide_up(row_groups, length) * columns < wave) length /= 2;
  return least(length, row_groups);
}

// Images of one launch.
static int64_t images_at_once(int64_t image_threads) {
  const int64_t images = march_most / image_threads;
  return images > 0 ? images : 1;
}

template <class M>
static const char* launch_march(const Upfirdn2dParams& p, cudaStream_t stream) {
  MarchParams m{};
  m.filter = p.filter;
  m.x = march_axis(p.x, M::PLANES);
  m.y = march_axis(p.y, false);
  m.channels = static_cast<int>(p.channels);
  m.vectors = m.channels / M::V;
  m.row_threads = static_cast<int>(divide_up(p.x.out + m.x.shift, M::COLUMNS)) * m.vectors;
  m.row_groups = static_cast<int>(divide_up(p.y.out + m.y.shift, M::UP));
  m.march = static_cast<int>(march_length(m.row_groups, int64_t(m.row_threads) * p.images, M::TAPS));
  m.chunks = static_cast<int>(divide_up(m.row_groups, m.march));
  m.one_dimensional = p.one_dimensional;
  m.flip_filter = p.flip_filter;
  m.scale = static_cast<float>(p.one_dimensional ? sqrt(p.gain) : p.gain);

  const int64_t image_threads = int64_t(m.row_threads) * m.chunks, at_once = images_at_once(image_threads);
  const int64_t in_bytes = row_offset(1, 0, p.y.size, p.x.size * p.channels) * sizeof(typename M::T);
  const int64_t out_bytes = row_offset(1, 0, p.y.out, p.x.out * p.channels) * sizeof(typename M::T);
  for (int64_t image = 0; image < p.images; image += at_once) {
    m.input = static_cast<const char*>(p.input) + image * in_bytes;
    m.output = static_cast<char*>(p.output) + image * out_bytes;
    const int64_t threads = image_threads * least(p.images - image, at_once);
    m.threads = static_cast<int>(threads);
    const dim3 grid(static_cast<unsigned>(divide_up(threads, march_threads)));
    const char* error = launch(march_kernel<M>, grid, dim3(march_threads), 0, stream, m);
    if (error != nullptr) return error;
  }
  return nullptr;
}

template <class T, int V, int TAPS, bool PLANES>
static const char* march_with_factors(const Upfirdn2dParams& p, cudaStream_t stream) {
  if (p.x.up == 2) return launch_march<March<T, V, 2, 1, TAPS, PLANES>>(p, stream);
  if (p.x.down == 2) return launch_march<March<T, V, 1, 2, TAPS, PLANES>>(p, stream);
  return launch_march<March<T, V, 1, 1, TAPS, PLANES>>(p, stream);
}

template <class T>
static const char* march(const Upfirdn2dParams& p, Upfirdn2dKernel kernel, cudaStream_t stream) {
  if (kernel == Upfirdn2dKernel::channels) return march_with_factors<T, 16 / sizeof(T), short_taps, false>(p, stream);
  if (kernel == Upfirdn2dKernel::planes) return march_with_factors<T, 1, short_taps, true>(p, stream);
  return march_with_factors<T, 1, long_taps, false>(p, stream);
}

// --- direct ---

static dim3 direct_grid(const Upfirdn2dParams& p, const Upfirdn2dAxis& x, const Upfirdn2dAxis& y) {
  return dim3(static_cast<unsigned>(divide_up(x.out * p.channels, direct_lanes)),
              static_cast<unsigned>(least(divide_up(y.out, direct_rows), 65535)),
              static_cast<unsigned>(least(p.images, 65535)));
}

template <class In, class Out>
static const char* launch_direct(const Upfirdn2dParams& p, const void* input, void* output, const Upfirdn2dAxis& x,
                                 const Upfirdn2dAxis& y, cudaStream_t stream) {
  if (x.out == 0 || y.out == 0) return nullptr;  // a first pass over a picture without rows
  const float scale = static_cast<float>(p.one_dimensional ? sqrt(p.gain) : p.gain);
  const DirectParams d{input, output, p.filter, p.images, p.channels, x, y, p.flip_filter, scale};
  const int64_t taps = x.taps * y.taps;
  const size_t staged = taps <= direct_staged_taps ? static_cast<size_t>(taps) * sizeof(float) : 0;
  return launch(direct_kernel<In, Out>, direct_grid(p, x, y), dim3(direct_lanes, direct_rows), staged, stream, d);
}

static bool in_two_passes(const Upfirdn2dParams& p) { return upfirdn2d_kernel(p) == Upfirdn2dKernel::two_passes; }

int64_t upfirdn2d_between_bytes(const Upfirdn2dParams& p) {
  if (!in_two_passes(p)) return 0;
  return p.images * p.y.size * p.x.out * p.channels * (p.dtype == Dtype::float64 ? 8 : 4);
}

template <class T>
static const char* direct(const Upfirdn2dParams& p, Upfirdn2dKernel kernel, cudaStream_t stream) {
  if (kernel == Upfirdn2dKernel::direct) {
    return launch_direct<T, T>(p, p.input, p.output, p.x, p.y, stream);
  }
  const Upfirdn2dAxis only_x{p.y.size, p.y.size, 1, 1, 0, 1}, only_y{p.x.out, p.x.out, 1, 1, 0, 1};
  const char* error = launch_direct<T, compute_t<T>>(p, p.input, p.between, p.x, only_x, stream);
  if (error != nullptr) return error;
  return launch_direct<compute_t<T>, T>(p, p.between, p.output, only_y, p.y, stream);
}

// --- all ---

template <class T>
static const char* run(const Upfirdn2dParams& p, cudaStream_t stream) {
  const Upfirdn2dKernel kernel = upfirdn2d_kernel(p);
  const bool marches = kernel != Upfirdn2dKernel::direct && kernel != Upfirdn2dKernel::two_passes;
  if constexpr (sizeof(T) < 8) {
    if (marches) return march<T>(p, kernel, stream);
  }
  return direct<T>(p, kernel, stream);
}

const char* upfirdn2d(const Upfirdn2dParams& p, void* stream_pointer) {
  if (p.images == 0 || p.channels == 0) return nullptr;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_pointer);
  switch (p.dtype) {
    case Dtype::float32:
      return run<float>(p, stream);
    case Dtype::float64:
      return run<double>(p, stream);
    case Dtype::float16:
      return run<half>(p, stream);
    case Dtype::bfloat16:
      return run<bfloat16>(p, stream);
  }
  return "upfirdn2d: unknown dtype";
}

}  // namespace fastinv::cuda
