// Choice of the CPU instruction set at run time. Every csrc/cpu/*_kernel.cpp is compiled once per instruction set, with
// -DFASTINV_ISA=portable, avx2 or avx512, and puts its functions in namespace fastinv::FASTINV_ISA.
//
// In csrc/cpu/<op>.h:          FASTINV_FOR_EACH_ISA(void square(const SquareParams& p, int64_t begin, int64_t end);)
// In csrc/cpu/<op>_kernel.cpp: namespace fastinv::FASTINV_ISA { void square(const SquareParams& p, ...) { ... } }
// In csrc/cpu/<op>.cpp:        FASTINV_ISA_CALL(square, params, begin, end);  (a template: square<float>)
#pragma once

namespace fastinv {

enum class Isa { portable = 0, avx2 = 1, avx512 = 2 };
// Arithmetic for products of bfloat16 beside the AVX-512 kernels: dot products of pairs, tiles.
enum class Bfloat16Unit { none = 0, avx512_bf16 = 1, amx = 2 };

Isa cpu_isa();                 // the one in use: the best of machine and build, lowered by FASTINV_CPU_ISA
Bfloat16Unit bfloat16_unit();  // likewise
const char* isa_name(Isa isa);
const char* unit_name(Bfloat16Unit unit);  // "" for none

// What FASTINV_CPU_ISA may name, lowest first: portable, avx2, avx512, avx512_bf16, amx.
const char* cpu_level_name(int index);  // null behind the last one
bool cpu_level_available(int index);    // built in, and this machine can run it

}  // namespace fastinv

// Compilers that know the intrinsics of the bfloat16 units; kernels use them under __attribute__((target(...))).
#if defined(FASTINV_HAVE_AVX512) && \
    ((defined(__clang__) && __clang_major__ >= 12) || (!defined(__clang__) && __GNUC__ >= 11))
#define FASTINV_HAVE_BFLOAT16_UNITS
#endif

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
