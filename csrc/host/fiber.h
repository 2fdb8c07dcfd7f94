// Fibers: stacks, and switching between them. On x86-64 a few instructions of our own; elsewhere ucontext, which costs
// a system call for each switch. AddressSanitizer is told of every switch.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) || !defined(__linux__) || defined(FASTINV_HOST_UCONTEXT)
#define FASTINV_HOST_USES_UCONTEXT 1
#include <ucontext.h>
#endif

namespace fastinv::host {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t stack_bytes = 256 * 1024;  // its frames are larger
#else
constexpr size_t stack_bytes = 64 * 1024;
#endif

struct Context {
#if defined(FASTINV_HOST_USES_UCONTEXT)
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
  const void* stack = nullptr;  // lowest address
  size_t stack_size = 0;
};

#if !defined(FASTINV_HOST_USES_UCONTEXT)
// Saves the registers that a callee must keep on this stack, and takes them from the other one.
extern "C" void fastinv_host_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.weak fastinv_host_switch
.hidden fastinv_host_switch
.type fastinv_host_switch, @function
fastinv_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastinv_host_switch, . - fastinv_host_switch
)");
#endif

// Makes a context that begins in entry(), which must never return.
inline void prepare(Context& context, void* stack, size_t size, void (*entry)()) {
  context.stack = stack;
  context.stack_size = size;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, size);  // what an abandoned fiber left
#endif
#if defined(FASTINV_HOST_USES_UCONTEXT)
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = size;
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
#else
  uintptr_t* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(stack) + size);
  *--top = 0;  // where entry's return address would be: also aligns its frame
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  context.stack_pointer = top;
#endif
}

// Begins or goes on with `to`; returns when somebody switches back to `from`.
inline void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack, to.stack_size);
#endif
#if defined(FASTINV_HOST_USES_UCONTEXT)
  swapcontext(&from.registers, &to.registers);
#else
  fastinv_host_switch(&from.stack_pointer, to.stack_pointer);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// The first thing in entry(): tells the sanitizer that we arrived, and learns the stack of the one who started us.
inline void arrive([[maybe_unused]] Context& caller) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &caller.stack, &caller.stack_size);
#endif
}

// Stacks with an unreadable page below each, so that an overflow ends in a fault and not in another thread's variables.
class Stacks {
 public:
  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  ~Stacks() { release(); }

  void reserve(unsigned count) {
    if (count <= count_) return;
    release();
    guard_ = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, count * (guard_ + stack_bytes), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<char*>(memory);
    count_ = count;
    for (unsigned i = 0; i < count; ++i) mprotect(memory_ + i * (guard_ + stack_bytes), guard_, PROT_NONE);
  }
  void* operator[](unsigned i) const { return memory_ + i * (guard_ + stack_bytes) + guard_; }

 private:
  void release() {
    if (memory_ == nullptr) return;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_, count_ * (guard_ + stack_bytes));
#endif
    munmap(memory_, count_ * (guard_ + stack_bytes));
    memory_ = nullptr;
    count_ = 0;
  }

  char* memory_ = nullptr;
  size_t guard_ = 0;
  unsigned count_ = 0;
};

}  // namespace fastinv::host
