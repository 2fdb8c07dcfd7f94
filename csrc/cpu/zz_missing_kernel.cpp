// Stands in for the kernels of frozen_conv.h that are not built yet. The name sorts last: where a
// function is there, the linker has taken it already.
#include <stdexcept>

#include "frozen_conv.h"

#define MISSING(name)                                                   \
  {                                                                     \
    throw std::runtime_error("frozen_conv: " name " is not built yet"); \
  }

namespace fastinv {
namespace FASTINV_ISA {
// clang-format off
#define KIND(name, label)                                                                        \
  template <class T>                                                                             \
  int64_t name##_packed_size(int64_t, int64_t) MISSING(label) template <class T>                 \
  void name##_pack(const float*, int64_t, int64_t, void*) MISSING(label) template <class T>      \
  int64_t name##_work(const FrozenConv&, const Tail&, int64_t) MISSING(label) template <class T> \
  void name##_run(const FrozenConv&, const Tail&, char*, const Parallel&)                        \
      MISSING(label) template int64_t name##_packed_size<float>(int64_t, int64_t);               \
  template int64_t name##_packed_size<bfloat16>(int64_t, int64_t);                               \
  template void name##_pack<float>(const float*, int64_t, int64_t, void*);                       \
  template void name##_pack<bfloat16>(const float*, int64_t, int64_t, void*);                    \
  template int64_t name##_work<float>(const FrozenConv&, const Tail&, int64_t);                  \
  template int64_t name##_work<bfloat16>(const FrozenConv&, const Tail&, int64_t);               \
  template void name##_run<float>(const FrozenConv&, const Tail&, char*, const Parallel&);       \
  template void name##_run<bfloat16>(const FrozenConv&, const Tail&, char*, const Parallel&);

KIND(up, "the kind 'up'")
KIND(down, "the kind 'down'")


}  // namespace FASTINV_ISA
}  // namespace fastinv
