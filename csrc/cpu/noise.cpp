// The noise regulariser and the normalisation of noise maps on the CPU: checks, outputs, threads.
#include "noise.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../common/stable.h"

namespace fastinv {
namespace {

constexpr int64_t kGrain = 32768;  // elements a thread is worth waking up for, and of which sums are made
constexpr int64_t kRows = 64;      // of which sums are made: fixed, so that they do not depend on the threads

struct Level {
  int64_t size, offset;  // offset of its picture among the sample's levels; level 0 is the map
};

// The levels of a map, and at the end an entry with the number of elements of one sample's levels.
std::vector<Level> levels_of(int64_t size) {
  std::vector<Level> levels = {{size, 0}};
  int64_t offset = 0;
  while (size > 8) {
    size /= 2;
    levels.push_back({size, offset});
    offset += (size * size + 3) / 4 * 4;  // as in csrc/cuda/noise.cu
  }
  levels.push_back({0, offset});
  return levels;
}

// run(T()) with the element type of the maps.
template <class Run>
void with_type(const Tensor& map, const Run& run) {
  if (map.scalar_type() == ScalarType::Double) return run(double());
  run(float());
}

struct Maps {
  std::vector<Tensor> dense;
  int64_t samples = 1, means = 0, pyramid = 0;  // of the batch; rows of `means`; elements of `pyramid`
};

Maps checked_maps(const char* op, const std::vector<Tensor>& maps) {
  FASTINV_CHECK(!maps.empty(), op, ": needs at least 1 map");
  const ScalarType dtype = maps[0].scalar_type();
  FASTINV_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
                ": maps must be float32 or float64, got ", torch::headeronly::toString(dtype));
  Maps result;
  for (const Tensor& map : maps) {
    FASTINV_CHECK(map.dim() == 4 && map.size(1) == 1 && map.size(2) == map.size(3) && map.size(2) > 0, op,
                  ": maps must be [N or 1, 1, R, R]");
    FASTINV_CHECK(map.scalar_type() == dtype, op, ": maps must have one dtype");
    if (map.size(0) != 1) result.samples = map.size(0);
    const std::vector<Level> levels = levels_of(map.size(2));
    result.means += map.size(0) * (static_cast<int64_t>(levels.size()) - 1);
    result.pyramid += map.size(0) * levels.back().offset;
    result.dense.push_back(in_layout(map, false));
  }
  return result;
}

void check_samples(const char* op, const Maps& maps) {
  for (const Tensor& map : maps.dense) {
    FASTINV_CHECK(map.size(0) == maps.samples || map.size(0) == 1, op, ": maps must have ", maps.samples,
                  " samples or 1, got ", map.size(0));
  }
}

// Calls body(begin, end) for ranges of rows of a picture, with threads where it is large.
template <class Body>
void for_rows(int64_t rows, int64_t size, const Body& body) {
  const int64_t blocks = (rows + kRows - 1) / kRows;
  parallel_for(0, blocks, kGrain / (kRows * size) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) body(block * kRows, std::min((block + 1) * kRows, rows), block);
  });
}

std::tuple<Tensor, Tensor, Tensor> noise_regularization_cpu(std::vector<Tensor> maps_any) {
  const char* op = "noise_regularization";
  const Maps maps = checked_maps(op, maps_any);
  check_samples(op, maps);
  const ScalarType dtype = maps.dense[0].scalar_type();
  Tensor value = empty({maps.samples}, dtype), means = empty({maps.means, 2}, ScalarType::Double);
  Tensor pyramid = empty({maps.pyramid}, dtype);
  with_type(maps.dense[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<double> total(maps.samples, 0.0);
    double* mean = mutable_data<double>(means);
    T* averages = mutable_data<T>(pyramid);
    for (const Tensor& map : maps.dense) {
      const std::vector<Level> levels = levels_of(map.size(2));
      for (int64_t n = 0; n < map.size(0); ++n, averages += levels.back().offset) {
        const T* x = data<T>(map) + n * map.size(2) * map.size(2);
        double sample_total = 0;
        for (size_t i = 0; i + 1 < levels.size(); ++i, mean += 2) {
          const int64_t size = levels[i].size;
          std::vector<double> sums(2 * ((size + kRows - 1) / kRows), 0.0);
          for_rows(size, size, [&](int64_t begin, int64_t end, int64_t block) {
            FASTINV_ISA_CALL(neighbour_products, x, size, begin, end, sums.data() + 2 * block);
          });
          mean[0] = mean[1] = 0;
          for (size_t j = 0; j < sums.size(); ++j) mean[j % 2] += sums[j];
          mean[0] /= static_cast<double>(size * size);
          mean[1] /= static_cast<double>(size * size);
          sample_total += mean[0] * mean[0] + mean[1] * mean[1];
          if (i + 2 == levels.size()) continue;
          T* next = averages + levels[i + 1].offset;
          for_rows(size / 2, size,
                   [&](int64_t begin, int64_t end, int64_t) { FASTINV_ISA_CALL(halve, x, size, begin, end, next); });
          x = next;
        }
        if (map.size(0) == maps.samples) {
          total[n] += sample_total;
        } else {
          for (double& own : total) own += sample_total;
        }
      }
    }
    for (int64_t n = 0; n < maps.samples; ++n) mutable_data<T>(value)[n] = static_cast<T>(total[n]);
  });
  return {value, means, pyramid};
}

std::vector<Tensor> noise_regularization_backward_cpu(const Tensor& dvalue_any, std::vector<Tensor> maps_any,
                                                      const Tensor& means_any, const Tensor& pyramid_any) {
  const char* op = "noise_regularization_backward";
  const Maps maps = checked_maps(op, maps_any);
  check_samples(op, maps);
  const ScalarType dtype = maps.dense[0].scalar_type();
  FASTINV_CHECK(dvalue_any.numel() == maps.samples && dvalue_any.scalar_type() == dtype, op, ": dvalue must have ",
                maps.samples, " elements of the dtype of the maps");
  FASTINV_CHECK(means_any.numel() == 2 * maps.means && means_any.scalar_type() == ScalarType::Double &&
                    pyramid_any.numel() == maps.pyramid && pyramid_any.scalar_type() == dtype,
                op, ": means and pyramid must be those of noise_regularization for these maps");
  const Tensor dvalue = in_layout(dvalue_any, false), means = in_layout(means_any, false);
  const Tensor pyramid = in_layout(pyramid_any, false);
  std::vector<Tensor> gradients;
  for (const Tensor& map : maps.dense) gradients.push_back(empty({map.size(0), 1, map.size(2), map.size(3)}, dtype));
  with_type(maps.dense[0], [&](auto zero) {
    using T = decltype(zero);
    const double* mean = data<double>(means);
    const T* averages = data<T>(pyramid);
    for (size_t m = 0; m < maps.dense.size(); ++m) {
      const Tensor& map = maps.dense[m];
      const std::vector<Level> levels = levels_of(map.size(2));
      const int64_t count = static_cast<int64_t>(levels.size()) - 1;
      std::vector<T> coarse(levels.back().offset);  // gradients of the levels
      for (int64_t n = 0; n < map.size(0); ++n, averages += levels.back().offset, mean += 2 * count) {
        double weight = 0;
        for (int64_t i = 0; i < maps.samples; ++i) {
          if (i == n || map.size(0) != maps.samples) weight += data<T>(dvalue)[i];
        }
        for (int64_t i = count - 1; i >= 0; --i) {
          const int64_t size = levels[i].size, elements = map.size(2) * map.size(2);
          const T* x = i > 0 ? averages + levels[i].offset : data<T>(map) + n * elements;
          T* out = i > 0 ? coarse.data() + levels[i].offset : mutable_data<T>(gradients[m]) + n * elements;
          const T* deeper = i < count - 1 ? coarse.data() + levels[i + 1].offset : nullptr;
          const double pixels = static_cast<double>(size * size);
          const T across = static_cast<T>(2 * weight * mean[2 * i] / pixels);
          const T down = static_cast<T>(2 * weight * mean[2 * i + 1] / pixels);
          for_rows(size, size, [&](int64_t begin, int64_t end, int64_t) {
            FASTINV_ISA_CALL(neighbour_gradient, x, size, begin, end, across, down, deeper, out);
          });
        }
      }
    }
  });
  return gradients;
}

void normalize_noise_cpu(std::vector<Tensor> maps_any) {
  const char* op = "normalize_noise_";
  for (const Tensor& map : maps_any) {
    FASTINV_CHECK(map.is_contiguous(), op, ": maps must be contiguous, they are changed in place");
  }
  const Maps maps = checked_maps(op, maps_any);
  with_type(maps.dense[0], [&](auto zero) {
    using T = decltype(zero);
    for (const Tensor& map : maps.dense) {
      const int64_t elements = map.size(2) * map.size(3), blocks = (elements + kGrain - 1) / kGrain;
      std::vector<double> sums(blocks);
      for (int64_t n = 0; n < map.size(0); ++n) {
        T* x = mutable_data<T>(map) + n * elements;
        const auto total = [&](const auto& of_block) {  // blocks of a fixed size, added in order
          parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
            for (int64_t b = begin; b < end; ++b) {
              sums[b] = of_block(x + b * kGrain, std::min(kGrain, elements - b * kGrain));
            }
          });
          double sum = 0;
          for (double part : sums) sum += part;
          return sum;
        };
        const double first = elements > 0 ? x[0] : 0;  // as if the map were near zero: nothing cancels
        const double difference =
            total([&](const T* part, int64_t count) { return FASTINV_ISA_CALL(add_up, part, count, first); });
        const double mean = first + difference / static_cast<double>(elements);
        const double square =
            total([&](const T* part, int64_t count) { return FASTINV_ISA_CALL(add_squares, part, count, mean); }) /
            static_cast<double>(elements);
        const double rounding = 4 * std::numeric_limits<T>::epsilon() * mean;  // a constant becomes zeros
        const double factor = square <= rounding * rounding ? 0.0 : 1 / std::sqrt(square);
        parallel_for(0, elements, kGrain, [&](int64_t begin, int64_t end) {
          FASTINV_ISA_CALL(centre_and_scale, x + begin, end - begin, mean, factor);
        });
      }
    }
  });
}

}  // namespace
}  // namespace fastinv

STABLE_TORCH_LIBRARY_IMPL(fastinv, CPU, m) {
  m.impl("noise_regularization", TORCH_BOX(&fastinv::noise_regularization_cpu));
  m.impl("noise_regularization_backward", TORCH_BOX(&fastinv::noise_regularization_backward_cpu));
  m.impl("normalize_noise_", TORCH_BOX(&fastinv::normalize_noise_cpu));
}
