// Which instruction set the CPU kernels use: decided once, at the first call.
#include "../common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(FASTINV_HAVE_AVX512)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastinv {
namespace {

struct Level {
  const char* name;
  Isa isa;
  Bfloat16Unit unit;
};

constexpr Level kLevels[] = {
    {"portable", Isa::portable, Bfloat16Unit::none}, {"avx2", Isa::avx2, Bfloat16Unit::none},
    {"avx512", Isa::avx512, Bfloat16Unit::none},     {"avx512_bf16", Isa::avx512, Bfloat16Unit::avx512_bf16},
    {"amx", Isa::avx512, Bfloat16Unit::amx},
};
constexpr int kLevelCount = static_cast<int>(sizeof kLevels / sizeof *kLevels);

bool has_isa(Isa isa) {
#if defined(FASTINV_HAVE_AVX2) && defined(FASTINV_HAVE_AVX512)
  // These also ask the operating system whether it saves the wide registers.
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return isa == Isa::portable || (isa == Isa::avx2 && avx2) || (isa == Isa::avx512 && avx512);
#else
  return isa == Isa::portable;
#endif
}

// Linux gives the tile registers only to a process that asks for them; that the processor has them is not enough.
[[maybe_unused]] bool tiles_permitted() {
#if defined(FASTINV_HAVE_BFLOAT16_UNITS) && defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}

bool has_unit(Bfloat16Unit unit) {
  if (unit == Bfloat16Unit::none) return true;
#if defined(FASTINV_HAVE_BFLOAT16_UNITS)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_isa(Isa::avx512) || !__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  if (unit == Bfloat16Unit::avx512_bf16) return true;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) && tiles_permitted();
#else
  return false;
#endif
}

const Level& level() {
  static const Level& chosen = []() -> const Level& {
    int best = 0;
    for (int i = 0; i < kLevelCount; ++i) {
      if (cpu_level_available(i)) best = i;
    }
    const char* wanted = std::getenv("FASTINV_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') return kLevels[best];
    std::string names;
    for (int i = 0; i < kLevelCount; ++i) {
      if (std::string(wanted) == kLevels[i].name) {
        if (cpu_level_available(i)) return kLevels[i];
        throw std::runtime_error("FASTINV_CPU_ISA=" + std::string(wanted) +
                                 ": this machine or this build does not have it; unset it, or use " +
                                 kLevels[best].name);
      }
      names += (i == 0 ? "" : i == kLevelCount - 1 ? " or " : ", ") + std::string(kLevels[i].name);
    }
    throw std::runtime_error("FASTINV_CPU_ISA=" + std::string(wanted) + ": must be " + names);
  }();
  return chosen;
}

}  // namespace

const char* cpu_level_name(int index) { return index < kLevelCount ? kLevels[index].name : nullptr; }

bool cpu_level_available(int index) { return has_isa(kLevels[index].isa) && has_unit(kLevels[index].unit); }

const char* isa_name(Isa isa) { return kLevels[static_cast<int>(isa)].name; }

const char* unit_name(Bfloat16Unit unit) {
  return unit == Bfloat16Unit::none ? "" : kLevels[static_cast<int>(Isa::avx512) + static_cast<int>(unit)].name;
}

Isa cpu_isa() {
  static const Isa isa = level().isa;
  return isa;
}

Bfloat16Unit bfloat16_unit() {
  static const Bfloat16Unit unit = level().unit;
  return unit;
}

}  // namespace fastinv
