// Products with packed weights. A panel of columns is as wide as two registers, or two tiles; a block of rows beside it
// has its sums in registers. Panels, then blocks of terms, then blocks of rows: the weights of a block of terms stay in
// the first-level cache. How the rows are cut changes no result: each element's terms are added in the same order.
#include "matrix.h"

#if defined(__AVX512F__) && defined(FASTINV_HAVE_BFLOAT16_UNITS)
#include <immintrin.h>
#define FASTINV_UNITS
#endif

namespace fastinv::FASTINV_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kFloatRows = 14, kPairRows = 12;  // 28 of 32 registers hold sums
#elif defined(__AVX2__)
constexpr int kLanes = 8, kFloatRows = 6, kPairRows = 4;  // 12 of 16
#else
constexpr int kLanes = 4, kFloatRows = 6, kPairRows = 4;
#endif
constexpr int64_t kColumns = 2 * kLanes;
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

template <class V>
FASTINV_INLINE V load_vector(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
FASTINV_INLINE void store_vector(void* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// One step of the sums: a term, or a pair of terms that lie side by side. `sums` is one row's.
// kRun: terms that are added one by one, before their sum is added to C. In float32 shorter runs round less (by 1.4 to
// 1.8 for sums of 512 terms); in bfloat16 what they would save is lost in the rounding of the factors, and reading and
// writing C more often costs time.
struct FloatStep {
  using Element = float;
  static constexpr int kTerms = 1, kRows = kFloatRows, kRun = 128;
  Vector b[2];
  FASTINV_INLINE explicit FloatStep(const float* from)
      : b{load_vector<Vector>(from), load_vector<Vector>(from + kLanes)} {}
  FASTINV_INLINE void add(const float* a, Vector* sums) const {
    const Vector value = *a - Vector{};
    sums[0] += value * b[0];
    sums[1] += value * b[1];
  }
};

FASTINV_INLINE uint32_t load_pair(const bfloat16* a) {
  uint32_t pair;
  std::memcpy(&pair, a, sizeof pair);
  return pair;
}

// A bfloat16 is the upper half of a float.
struct PairStep {
  using Element = bfloat16;
  static constexpr int kTerms = 2, kRows = kPairRows, kRun = 384;
  Vector even[2], odd[2];
  static FASTINV_INLINE Vector lower(Words pair) { return reinterpret_cast<Vector>(pair << 16); }
  static FASTINV_INLINE Vector upper(Words pair) { return reinterpret_cast<Vector>(pair & 0xffff0000u); }
  FASTINV_INLINE explicit PairStep(const bfloat16* from) {
    for (int i = 0; i < 2; ++i) {
      const Words pair = load_vector<Words>(from + 2 * i * kLanes);
      even[i] = lower(pair);
      odd[i] = upper(pair);
    }
  }
  FASTINV_INLINE void add(const bfloat16* a, Vector* sums) const {
    const Words pair = load_pair(a) - Words{};
    const Vector first = lower(pair), second = upper(pair);
    for (int i = 0; i < 2; ++i) sums[i] += first * even[i];
    for (int i = 0; i < 2; ++i) sums[i] += second * odd[i];
  }
};

#ifdef FASTINV_UNITS
struct DotStep {  // AVX512_BF16, whose one instruction of interest needs no function with other target options
  using Element = bfloat16;
  static constexpr int kTerms = 2, kRows = kFloatRows, kRun = 2304;
  Words b[2];
  FASTINV_INLINE explicit DotStep(const bfloat16* from)
      : b{load_vector<Words>(from), load_vector<Words>(from + 2 * kLanes)} {}
  FASTINV_INLINE void add(const bfloat16* a, Vector* sums) const {
    const Words pair = load_pair(a) - Words{};
    for (int i = 0; i < 2; ++i) asm("vdpbf16ps %2, %1, %0" : "+v"(sums[i]) : "v"(b[i]), "v"(pair));
  }
};
#endif

// A run of terms: whole taps, or part of one.
struct Run {
  const int64_t* offsets;
  int64_t taps, first, last;  // k from first to last of each of these taps
  bool add;                   // to C
};

template <class Step, int M>
void multiply_rows(const typename Step::Element* a, int64_t a_stride, const Run& run,
                   const typename Step::Element* __restrict b, float* c, int64_t c_stride) {
  Vector sums[M][2] = {};
  for (int64_t t = 0; t < run.taps; ++t) {
    const typename Step::Element* row = a + run.offsets[t];
    for (int64_t k = run.first; k < run.last; k += Step::kTerms, b += Step::kTerms * kColumns) {
      const Step step(b);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) step.add(row + m * a_stride + k, sums[m]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m, c += c_stride) {
    for (int i = 0; i < 2; ++i) {
      store_vector(c + i * kLanes, run.add ? load_vector<Vector>(c + i * kLanes) + sums[m][i] : sums[m][i]);
    }
  }
}

// multiply_rows<Step, rows>
template <class Step, int M = Step::kRows>
FASTINV_INLINE auto rows_function(int64_t rows) {
  if constexpr (M == 1) {
    return &multiply_rows<Step, 1>;
  } else {
    return rows == M ? &multiply_rows<Step, M> : rows_function<Step, M - 1>(rows);
  }
}

// Calls body(run, place of its weights in the panel's) for the runs of at most `length` terms, or one group of them.
template <class Body>
FASTINV_INLINE void for_runs(const MatrixProduct& p, int64_t length, const Body& body) {
  const int64_t together = p.inner < length ? length / p.inner : 1;
  for (int64_t t = 0; t < p.taps; t += together) {
    const int64_t taps = p.taps - t < together ? p.taps - t : together;
    for (int64_t k = 0; k < p.inner; k += length) {
      const int64_t last = p.inner - k < length ? p.inner : k + length;
      body(Run{p.offsets + t, taps, k, last, p.add || t > 0 || k > 0}, (t * p.inner + k) * kColumns);
    }
  }
}

template <class Step>
void multiply(const MatrixProduct& p) {
  using T = typename Step::Element;
  if (p.rows <= 0) return;
  const int64_t blocks = (p.rows + Step::kRows - 1) / Step::kRows;  // of equal height, or one more
  const int64_t height = p.rows / blocks, higher = p.rows % blocks;
  const auto low = rows_function<Step>(height), high = rows_function<Step>(height + (higher > 0));
  for (int64_t panel = p.first_panel; panel < p.last_panel; ++panel) {
    const T* weights = static_cast<const T*>(p.b) + panel * p.taps * p.inner * kColumns;
    for_runs(p, Step::kRun, [&](const Run& run, int64_t place) {
      const T* a = static_cast<const T*>(p.a);
      float* c = p.c + panel * kColumns;
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t rows = height + (i < higher);
        (i < higher ? high : low)(a, p.a_stride, run, weights + place, c, p.c_stride);
        a += rows * p.a_stride;
        c += rows * p.c_stride;
      }
    });
  }
}

#ifdef FASTINV_UNITS
constexpr int64_t kTileRows = 16, kTileTerms = 32;

struct TileShapes {  // the operand of ldtilecfg
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

// Tiles 0 to 3: sums of two blocks of rows and two of columns; 4, 5: rows of A; 6, 7: weights. c: of the blocks.
template <int M>
__attribute__((target("amx-tile,amx-bf16"))) void multiply_tiles(const MatrixProduct& p, const bfloat16* const* rows,
                                                                 const bfloat16* b, float* const* c) {
  const int64_t a_bytes = 2 * p.a_stride, b_bytes = 4 * kColumns, c_bytes = 4 * p.c_stride;
  if (p.add) {
    _tile_loadd(0, c[0], c_bytes);
    _tile_loadd(1, c[0] + 16, c_bytes);
    if (M == 2) _tile_loadd(2, c[1], c_bytes);
    if (M == 2) _tile_loadd(3, c[1] + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (M == 2) _tile_zero(2);
    if (M == 2) _tile_zero(3);
  }
  for (int64_t t = 0; t < p.taps; ++t) {
    for (int64_t k = p.offsets[t]; k < p.offsets[t] + p.inner; k += kTileTerms, b += kTileTerms * kColumns) {
      _tile_loadd(6, b, b_bytes);
      _tile_loadd(4, rows[0] + k, a_bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 32, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
      if (M == 2) _tile_loadd(5, rows[1] + k, a_bytes);
      if (M == 2) _tile_dpbf16ps(2, 5, 6);
      if (M == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c[0], c_bytes);
  _tile_stored(1, c[0] + 16, c_bytes);
  if (M == 2) _tile_stored(2, c[1], c_bytes);
  if (M == 2) _tile_stored(3, c[1] + 16, c_bytes);
}

// All tiles have one height, so that one configuration does. Where it does not divide the rows, the last tile begins
// within the one before: both belong to one pair, which reads C before it writes any of it. No runs of terms: what they
// would save in rounding is lost in that of the factors.
__attribute__((target("amx-tile,amx-bf16"))) void multiply_amx(const MatrixProduct& p) {
  if (p.rows <= 0) return;
  const int64_t tiles = (p.rows + kTileRows - 1) / kTileRows, height = (p.rows + tiles - 1) / tiles;
  TileShapes shapes = {};
  shapes.palette = 1;
  for (int i = 0; i < 8; ++i) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = static_cast<uint8_t>(i < 6 ? height : 16);
  }
  asm volatile("ldtilecfg %0" : : "m"(shapes));  // the intrinsic of gcc 12 does not tell that it reads all of it
  const bfloat16* a = static_cast<const bfloat16*>(p.a);
  for (int64_t panel = p.first_panel; panel < p.last_panel; ++panel) {
    const bfloat16* weights = static_cast<const bfloat16*>(p.b) + panel * p.taps * p.inner * kColumns;
    for (int64_t i = -(tiles % 2); i < tiles; i += 2) {
      const int64_t first = i < 0 ? 0 : i * height, second = i + 2 < tiles ? first + height : p.rows - height;
      const bfloat16* rows[] = {a + first * p.a_stride, a + second * p.a_stride};
      float* c[] = {p.c + first * p.c_stride + panel * kColumns, p.c + second * p.c_stride + panel * kColumns};
      if (i < 0) {  // an odd number of tiles: the first one by itself
        multiply_tiles<1>(p, rows, weights, c);
      } else {
        multiply_tiles<2>(p, rows, weights, c);
      }
    }
  }
  _tile_release();
}
#endif

void multiply_any(const MatrixProduct& p, const float*) { multiply<FloatStep>(p); }

void multiply_any(const MatrixProduct& p, const bfloat16*) {
#ifdef FASTINV_UNITS
  if (bfloat16_unit() == Bfloat16Unit::amx) return multiply_amx(p);
  if (bfloat16_unit() == Bfloat16Unit::avx512_bf16) return multiply<DotStep>(p);
#endif
  multiply<PairStep>(p);
}

}  // namespace

int64_t matrix_columns() { return kColumns; }

template <class T>
int64_t matrix_inner(int64_t k) {
  const int64_t step = sizeof(T) == 4 ? 1 : bfloat16_unit() == Bfloat16Unit::amx ? 32 : 2;
  return (k + step - 1) / step * step;
}

template <class T>
int64_t matrix_packed_size(int64_t taps, int64_t k, int64_t columns) {
  return (columns + kColumns - 1) / kColumns * kColumns * taps * matrix_inner<T>(k);
}

// Panels of columns one after the other, in each [tap][k][column]; for bfloat16 [tap][k / 2][column][k % 2].
template <class T>
void matrix_pack(const float* source, int64_t tap_stride, int64_t k_stride, int64_t n_stride, int64_t taps, int64_t k,
                 int64_t columns, void* packed) {
  constexpr int64_t kGroup = sizeof(T) == 4 ? 1 : 2;
  const int64_t inner = matrix_inner<T>(k);
  T* out = static_cast<T*>(packed);
  for (int64_t first = 0; first < columns; first += kColumns) {
    for (int64_t t = 0; t < taps; ++t) {
      for (int64_t i = 0; i < inner; i += kGroup) {
        for (int64_t n = first; n < first + kColumns; ++n) {
          for (int64_t j = i; j < i + kGroup; ++j) {
            const bool inside = j < k && n < columns;
            store(*out++, inside ? source[t * tap_stride + j * k_stride + n * n_stride] : 0.0f);
          }
        }
      }
    }
  }
}

template <class T>
void matrix_multiply(const MatrixProduct& p) {
  multiply_any(p, static_cast<const T*>(nullptr));
}

#define INSTANTIATE(T)                                                                                     \
  template int64_t matrix_inner<T>(int64_t);                                                               \
  template int64_t matrix_packed_size<T>(int64_t, int64_t, int64_t);                                       \
  template void matrix_pack<T>(const float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, void*); \
  template void matrix_multiply<T>(const MatrixProduct&);
INSTANTIATE(float)
INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
