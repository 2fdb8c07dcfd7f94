// The memory that a simulated kernel may touch: arrays that a binding registered, and the shared memory of the block.
// The wrappers load, store, copy_async16, ... ask here; plain reads p[i] are left to AddressSanitizer.
#pragma once

#include <algorithm>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastinv::host {

// Where in the source a kernel called something.
struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && std::string(file) == other.file; }
  std::string text() const {
    const std::string path(file);
    return path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(line);
  }
};

// Who stored a byte, and in which stretch between two barriers of the block.
struct Writer {
  uint32_t block = 0, thread = 0, phase = 0;  // block + 1; 0: nobody in this launch
};

struct Array {
  const char* begin;
  const char* end;
  bool writable;
  std::string name;
  std::vector<Writer> writers;  // one for each byte, if writable
};

class Memory {
 public:
  void add(const void* begin, size_t bytes, bool writable, const std::string& name) {
    const char* first = static_cast<const char*>(begin);
    arrays_.push_back({first, first + bytes, writable, name, std::vector<Writer>(writable ? bytes : 0)});
  }
  void remove_all() { arrays_.clear(); }

  void begin_launch() {
    for (Array& array : arrays_) std::fill(array.writers.begin(), array.writers.end(), Writer{});
  }

  void begin_block() { shared_.clear(); }
  void add_shared(const void* begin, size_t bytes) {
    const char* first = static_cast<const char*>(begin);
    shared_.push_back({first, first + bytes});
  }

  bool is_shared(const void* address, size_t bytes) const {
    const char* first = static_cast<const char*>(address);
    for (const auto& range : shared_) {
      if (first >= range.first && first + bytes <= range.second) return true;
    }
    return false;
  }

  void check_alignment(const char* what, const void* address, size_t bytes) const {
    if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return;
    std::ostringstream message;
    message << what << ": address " << address << " is not aligned to " << bytes << " bytes" << described(address);
    throw std::runtime_error(message.str());
  }

  void check_shared(const char* what, const void* address, size_t bytes) const {
    if (is_shared(address, bytes)) return;
    std::ostringstream message;
    message << what << ": " << bytes << " bytes at " << address << " are not in the shared memory of the block"
            << described(address);
    throw std::runtime_error(message.str());
  }

  void check_read(const char* what, const void* address, size_t bytes) {
    if (is_shared(address, bytes)) throw std::runtime_error(std::string(what) + ": reads shared memory as global");
    const Array* array = find(what, address, bytes, false);
    if (array == nullptr || !array->writable) return;
    const size_t offset = static_cast<const char*>(address) - array->begin;
    for (size_t i = 0; i < bytes; ++i) {
      if (array->writers[offset + i].block == 0) continue;
      throw std::runtime_error(std::string(what) + ": reads byte " + std::to_string(offset + i) + " of " + array->name +
                               ", which this launch has written");
    }
  }

  // value: what is going to be stored.
  void check_write(const char* what, const void* address, const void* value, size_t bytes, const Writer& writer) {
    if (is_shared(address, bytes)) return;
    Array* array = find(what, address, bytes, true);
    if (array == nullptr) return;
    if (!array->writable) throw std::runtime_error(std::string(what) + ": writes to " + array->name + ", an input");
    const size_t offset = static_cast<const char*>(address) - array->begin;
    for (size_t i = 0; i < bytes; ++i) {
      Writer& last = array->writers[offset + i];
      const bool same_thread = last.block == writer.block && last.thread == writer.thread;
      const bool ordered = last.block == writer.block && last.phase != writer.phase;  // a barrier lies between
      if (last.block != 0 && !same_thread && !ordered &&
          array->begin[offset + i] != static_cast<const char*>(value)[i]) {
        std::ostringstream message;
        message << what << ": write race: thread " << last.thread << " of block " << last.block - 1
                << " has written another value to byte " << offset + i << " of " << array->name;
        throw std::runtime_error(message.str());
      }
      last = writer;
    }
  }

 private:
  // Of several arrays at the address (an op in place), one that can be written if that is what we want.
  Array* find(const char* what, const void* address, size_t bytes, bool writable) {
    if (arrays_.empty()) return nullptr;  // a binding that registers nothing
    const char* first = static_cast<const char*>(address);
    Array* found = nullptr;
    for (Array& array : arrays_) {
      if (first < array.begin || first + bytes > array.end) continue;
      if (found == nullptr || array.writable == writable) found = &array;
    }
    if (found != nullptr) return found;
    std::ostringstream message;
    message << what << ": out of bounds: " << bytes << " bytes at " << address << described(address);
    throw std::runtime_error(message.str());
  }

  // ", byte 68 of x, which has 64", for the array that begins last below the address.
  std::string described(const void* address) const {
    const char* first = static_cast<const char*>(address);
    const Array* nearest = nullptr;
    for (const Array& array : arrays_) {
      if (array.begin <= first && (nearest == nullptr || array.begin > nearest->begin)) nearest = &array;
    }
    if (nearest == nullptr) return "";
    std::ostringstream text;
    text << ", byte " << first - nearest->begin << " of " << nearest->name << ", which has "
         << nearest->end - nearest->begin;
    return text.str();
  }

  std::vector<Array> arrays_;
  std::vector<std::pair<const char*, const char*>> shared_;
};

}  // namespace fastinv::host
