// A frozen layer without a convolution: its tail over whole bands of x, or, backward, of du (null for zeros).
#include "frozen_conv.h"

namespace fastinv::FASTINV_ISA {
namespace {

template <class T>
void run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  const TailLayer& layer = tail.layer();
  const int64_t bands = band_count(layer.height, layer.width), step = band_rows(layer.height, layer.width);
  const int64_t pixel = layer.channels, row = layer.width * pixel;
  T* result = static_cast<T*>(tail.forward ? tail.forward->y : tail.backward->du);
  parallel(p.samples * bands, [&](int64_t begin, int64_t end, int64_t slot) {
    void* scratch = work + slot * tail_scratch<T>(tail);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t sample = unit / bands, band = unit % bands, first = band * step;
      const int64_t rows = layer.height - first < step ? layer.height - first : step;
      const T* x = p.x ? static_cast<const T*>(p.x) + sample * p.x_stride + first * row : nullptr;
      T* to = result ? result + (sample * layer.height + first) * row : nullptr;
      tail_begin<T>(tail, sample, scratch);
      tail_places<T, T, T>(tail, {sample, first, 0, rows, layer.width, x, row, pixel, to, row, pixel}, scratch);
      tail_end<T>(tail, sample, band, scratch);
    }
  });
}

}  // namespace

template <class T>
int64_t none_work(const FrozenConv&, const Tail& tail, int64_t threads) {
  return tail_scratch<T>(tail) * threads;
}

template <class T>
void none_run(const FrozenConv& p, const Tail& tail, char* work, const Parallel& parallel) {
  run<T>(p, tail, work, parallel);
}

// clang-format off
#define FASTINV_INSTANTIATE(T)                                                      \
  template int64_t none_work<T>(const FrozenConv&, const Tail&, int64_t);           \
  template void none_run<T>(const FrozenConv&, const Tail&, char*, const Parallel&);
// clang-format on
FASTINV_INSTANTIATE(float)
FASTINV_INSTANTIATE(bfloat16)

}  // namespace fastinv::FASTINV_ISA
