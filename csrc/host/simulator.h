// Runs a CUDA grid on the CPU, to test kernels without a GPU: one block at a time, one fiber per thread, in an order
// that the test chooses. A kernel that breaks a rule ends its launch with an exception that names the block, the thread
// and the line. What the device leaves undefined shows: shared memory is NaN before each block, and barriers must be
// met by all.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "fiber.h"
#include "memory.h"

// CUDA's words.
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (fastinv::host::simulator().current->index)
#define blockIdx (fastinv::host::simulator().block_index)
#define blockDim (fastinv::host::simulator().block)
#define gridDim (fastinv::host::simulator().grid)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = void*;

namespace fastinv::host {

enum class Order { forward, reverse, random };
enum class State : uint8_t { ready, at_block_barrier, at_warp_barrier, ended };

constexpr unsigned warp_size = 32;
constexpr size_t most_shared_bytes = 227 * 1024;  // of sm_90
constexpr size_t most_static_shared_bytes = 48 * 1024;

// copy_async16 that was issued and not waited for.
struct PendingCopy {
  void* shared;
  const void* global;  // null: zeros
  unsigned group;
};

struct Thread {
  Context context;
  uint3 index;
  unsigned linear, lane, warp;
  State state;
  const char* waits_for;  // the operation at which it waits
  Site site;
  unsigned
      warp_operations;  // the exchange has two halves: the next operation may begin while others still read this one
  std::vector<PendingCopy> copies;
  unsigned copy_group;
};

// Something that kernels did, and where.
struct Operation {
  const char* kind;
  Site site;
  std::string name;
  bool omitted;
};

struct Warp {
  unsigned lanes, waiting;
  float exchange[2][warp_size][16];  // what each lane shows the others in a shuffle, ballot or mma
};

class Simulator {
 public:
  Order order = Order::forward;
  uint64_t seed = 1;
  uint64_t launches = 0, switches = 0;
  Memory memory;

  dim3 grid, block;
  uint3 block_index{};
  Thread* current = nullptr;

  // Null, or what the device would say of such a launch.
  static const char* refusal(dim3 grid, dim3 block, size_t dynamic_shared_bytes) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535) {
      return "invalid configuration argument (grid)";
    }
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > 1024 || block.z > 64) return "invalid configuration argument (block)";
    if (dynamic_shared_bytes > most_shared_bytes) return "invalid argument (dynamic shared memory)";
    return nullptr;
  }

  // kernel(arguments) is what each thread calls.
  void run(dim3 grid_size, dim3 block_size, size_t dynamic_shared_bytes, void (*kernel)(void*), void* arguments) {
    if (current != nullptr) throw std::runtime_error("launch from within a kernel");
    ++launches;
    grid = grid_size;
    block = block_size;
    kernel_ = kernel;
    arguments_ = arguments;
    dynamic_bytes_ = dynamic_shared_bytes;
    dynamic_.reset(static_cast<unsigned char*>(::operator new(dynamic_shared_bytes, std::align_val_t{128})));
    threads_.resize(std::max<size_t>(threads_.size(), block.x * block.y * block.z));
    stacks_.reserve(static_cast<unsigned>(threads_.size()));
    memory.begin_launch();
    std::mt19937_64 generator(seed);
    std::vector<uint64_t> blocks(uint64_t{grid.x} * grid.y * grid.z);
    put_in_order(blocks, generator);
    for (uint64_t i : blocks) {
      block_index = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                     static_cast<unsigned>(i / grid.x / grid.y)};
      try {
        run_block(static_cast<uint32_t>(i), generator);
      } catch (...) {
        current = nullptr;
        memory.begin_block();
        throw;
      }
    }
    memory.begin_block();
  }

  // "block_barrier bias_act.cuh:120" and the like: the operations that kernels have executed, and the one that they are
  // to leave out from now on ("": none). Tests are tested so.
  std::vector<std::string> operations() const {
    std::vector<std::string> names;
    for (const Operation& operation : operations_) names.push_back(operation.name);
    return names;
  }
  void forget_operations() { operations_.clear(); }
  void omit(const std::string& name) {
    omitted_ = name;
    operations_.clear();
  }

  // --- called by threads --------------------------------------------------------------------------------------------
  bool omits(const char* kind, Site site) {
    for (const Operation& operation : operations_) {
      if (operation.site.line == site.line && operation.site.file == site.file && operation.kind == kind) {
        return operation.omitted;
      }
    }
    const std::string name = kind + (" " + site.text());
    operations_.push_back({kind, site, name, name == omitted_});
    return operations_.back().omitted;
  }

  void block_barrier(Site site) {
    if (omits("block_barrier", site)) return;
    Thread& thread = *current;
    thread.waits_for = "block_barrier";
    thread.site = site;
    if (++waiting_ < count_) return wait(State::at_block_barrier);
    waiting_ = 0;
    for (unsigned i = 0; i < count_; ++i) {
      if (!(threads_[i].site == site)) throw std::runtime_error(divergence("threads are at different barriers"));
    }
    ++phase_;
    for (unsigned i = 0; i < count_; ++i) threads_[i].state = State::ready;
  }

  // Returns when every lane of the warp is here; all must be in the same operation, at the same place.
  void warp_barrier(const char* operation, Site site) {
    Thread& thread = *current;
    Warp& warp = warps_[thread.warp];
    thread.waits_for = operation;
    thread.site = site;
    ++thread.warp_operations;
    if (++warp.waiting < warp.lanes) return wait(State::at_warp_barrier);
    warp.waiting = 0;
    Thread* lanes = &threads_[thread.warp * warp_size];
    for (unsigned i = 0; i < warp.lanes; ++i) {
      if (lanes[i].site == site && std::string(lanes[i].waits_for) == operation) continue;
      throw std::runtime_error(divergence("lanes of one warp are in different operations"));
    }
    for (unsigned i = 0; i < warp.lanes; ++i) lanes[i].state = State::ready;
  }

  // Shows `size` bytes to the other lanes; lane_data then gives what a lane showed, until the warp's next operation.
  void exchange(const char* operation, Site site, const void* data, size_t size) {
    Warp& warp = warps_[current->warp];
    std::memcpy(warp.exchange[current->warp_operations % 2][current->lane], data, size);
    warp_barrier(operation, site);
  }
  const float* lane_data(unsigned lane) const {
    const Warp& warp = warps_[current->warp];
    if (lane >= warp.lanes) throw std::runtime_error("lane " + std::to_string(lane) + " of the warp does not exist");
    return warp.exchange[(current->warp_operations - 1) % 2][lane];
  }
  unsigned lanes() const { return warps_[current->warp].lanes; }

  unsigned char* dynamic_shared() const { return dynamic_.get(); }
  uint64_t block_serial() const { return block_serial_; }
  void add_static_shared(void* begin, size_t bytes) {
    static_bytes_ += bytes;
    if (static_bytes_ > most_static_shared_bytes) throw std::runtime_error("more than 48 KB of static shared memory");
    if (static_bytes_ + dynamic_bytes_ > most_shared_bytes)
      throw std::runtime_error("more than 227 KB of shared memory");
    memory.add_shared(begin, bytes);
  }
  Writer writer() const { return {block_linear_ + 1, current->linear, phase_}; }

  // "message (file:line, block (0, 0, 0), thread (0, 0, 0))"
  std::string located(const std::string& message, Site site) const {
    return message + " (" + site.text() + ", block " + text(block_index) + ", thread " + text(current->index) + ")";
  }

 private:
  struct Free {
    void operator()(unsigned char* memory) const { ::operator delete(memory, std::align_val_t{128}); }
  };

  static std::string text(uint3 v) {
    return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
  }

  template <class Number>
  void put_in_order(std::vector<Number>& numbers, std::mt19937_64& generator) const {
    std::iota(numbers.begin(), numbers.end(), Number{0});
    if (order == Order::reverse) std::reverse(numbers.begin(), numbers.end());
    if (order == Order::random) std::shuffle(numbers.begin(), numbers.end(), generator);
  }

  void wait(State state) {
    current->state = state;
    ++switches;
    switch_context(current->context, main_);
  }

  static void thread_main();  // below: needs the one simulator

  void run_block(uint32_t linear, std::mt19937_64& generator) {
    block_linear_ = linear;
    ++block_serial_;
    count_ = block.x * block.y * block.z;
    waiting_ = ended_ = phase_ = 0;
    static_bytes_ = 0;
    failure_ = nullptr;
    memory.begin_block();
    memory.add_shared(dynamic_.get(), dynamic_bytes_);
    std::memset(dynamic_.get(), 0xff, dynamic_bytes_);
    warps_.resize((count_ + warp_size - 1) / warp_size);
    for (unsigned w = 0; w < warps_.size(); ++w) {
      warps_[w].lanes = std::min(warp_size, count_ - w * warp_size);
      warps_[w].waiting = 0;
    }
    for (unsigned i = 0; i < count_; ++i) {
      Thread& thread = threads_[i];
      thread.index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
      thread.linear = i;
      thread.lane = i % warp_size;
      thread.warp = i / warp_size;
      thread.state = State::ready;
      thread.warp_operations = thread.copy_group = 0;
      thread.copies.clear();
      prepare(thread.context, stacks_[i], stack_bytes, thread_main);
    }
    std::vector<unsigned> turns(count_);
    put_in_order(turns, generator);
    while (ended_ < count_) {
      bool progress = false;
      for (unsigned i : turns) {
        if (threads_[i].state != State::ready) continue;
        progress = true;
        current = &threads_[i];
        switch_context(main_, current->context);
        if (failure_ != nullptr) std::rethrow_exception(failure_);
      }
      if (!progress) throw std::runtime_error(divergence("threads wait for ever"));
    }
    current = nullptr;
  }

  // "divergent barrier in block (0, 0, 0) of 64 threads: what: 32 at block_barrier x.cuh:10, 32 ended"
  std::string divergence(const std::string& what) const {
    std::vector<std::pair<std::string, unsigned>> counts;
    for (unsigned i = 0; i < count_; ++i) {
      const Thread& thread = threads_[i];
      const bool here = &thread == current && thread.state == State::ready;  // the last to arrive
      const std::string place = thread.state == State::ended ? "ended"
                                : thread.state == State::ready && !here
                                    ? "elsewhere"
                                    : std::string("at ") + thread.waits_for + " " + thread.site.text();
      auto found = std::find_if(counts.begin(), counts.end(), [&](const auto& entry) { return entry.first == place; });
      if (found == counts.end()) found = counts.insert(counts.end(), {place, 0u});
      ++found->second;
    }
    std::string message =
        "divergent barrier in block " + text(block_index) + " of " + std::to_string(count_) + " threads: " + what + ":";
    for (const auto& entry : counts) message += " " + std::to_string(entry.second) + " " + entry.first + ",";
    message.pop_back();
    return message;
  }

  Context main_;
  Stacks stacks_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  void (*kernel_)(void*) = nullptr;
  void* arguments_ = nullptr;
  std::unique_ptr<unsigned char, Free> dynamic_;
  size_t dynamic_bytes_ = 0, static_bytes_ = 0;
  uint64_t block_serial_ = 0;
  uint32_t block_linear_ = 0;
  unsigned count_ = 0, waiting_ = 0, ended_ = 0, phase_ = 0;
  std::exception_ptr failure_;
  std::vector<Operation> operations_;
  std::string omitted_;
};

inline Simulator& simulator() {
  static Simulator the_simulator;  // one for each module
  return the_simulator;
}

inline void Simulator::thread_main() {
  Simulator& s = simulator();
  arrive(s.main_);
  try {
    s.kernel_(s.arguments_);
  } catch (...) {
    s.failure_ = std::current_exception();
  }
  ++s.ended_;
  s.wait(State::ended);
}

}  // namespace fastinv::host
