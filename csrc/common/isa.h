// Choice of the CPU instruction set at run time. Every csrc/cpu/*_kernel.cpp is compiled once per instruction set, with
// -DFASTINV_ISA=portable, avx2 or avx512, and puts its functions in namespace fastinv::FASTINV_ISA.
//
// In csrc/cpu/<op>.h:          FASTINV_FOR_EACH_ISA(void square(const SquareParams& p, int64_t begin, int64_t end);)
// In csrc/cpu/<op>_kernel.cpp: namespace fastinv::FASTINV_ISA { void square(const SquareParams& p, ...) { ... } }
// In csrc/cpu/<op>.cpp:        FASTINV_ISA_CALL(square, params, begin, end);  (a template: square<float>)
#pragma once

namespace fastinv {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };

Isa cpu_isa();                    // the one in use: the best of machine and build, lowered by FASTINV_CPU_ISA
bool cpu_isa_available(Isa isa);  // built in, and this machine can run it
const char* isa_name(Isa isa);

}  // namespace fastinv

// FASTINV_HAVE_AVX2 and FASTINV_HAVE_AVX512 come from the build (see CMakeLists.txt); other processors have neither.
#if defined(FASTINV_HAVE_AVX2) && defined(FASTINV_HAVE_AVX512)
#define FASTINV_FOR_EACH_ISA(...) \
  namespace portable {            \
  __VA_ARGS__                     \
  }                               \
  namespace avx2 {                \
  __VA_ARGS__                     \
  }                               \
  namespace avx512 {              \
  __VA_ARGS__                     \
  }
#define FASTINV_ISA_CALL(function, ...)                                                      \
  (::fastinv::cpu_isa() == ::fastinv::Isa::avx512 ? ::fastinv::avx512::function(__VA_ARGS__) \
   : ::fastinv::cpu_isa() == ::fastinv::Isa::avx2 ? ::fastinv::avx2::function(__VA_ARGS__)   \
                                                  : ::fastinv::portable::function(__VA_ARGS__))
#else
#define FASTINV_FOR_EACH_ISA(...) \
  namespace portable {            \
  __VA_ARGS__                     \
  }
#define FASTINV_ISA_CALL(function, ...) (::fastinv::portable::function(__VA_ARGS__))
#endif
