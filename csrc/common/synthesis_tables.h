// Checks of the tables (one entry per input, convolution or layer) that the ops of styles and sums take, for CPU and
// CUDA.
#pragma once

#include "stable.h"

namespace fastinv {

constexpr int64_t kMostTableEntries = 32;  // the CUDA kernels take tables as parameters; 2048x2048 needs 20 entries
constexpr int64_t kMostIndex = int64_t(1) << 28;  // 8 samples are numbered in 32 bits

inline void check_entries(const char* op, const char* name, int64_t entries) {
  FASTINV_CHECK(entries <= kMostTableEntries, op, ": at most ", kMostTableEntries, " ", name, ", got ", entries);
}

// rows of `styles`: inputs + 1 numbers that do not fall, from 0 to the number of rows of the matrix.
inline void check_style_rows(const char* op, const std::vector<int64_t>& rows, int64_t row_count) {
  const int64_t entries = static_cast<int64_t>(rows.size()) - 1;
  FASTINV_CHECK(entries >= 1, op, ": rows must have at least 2 numbers, got ", entries + 1);
  check_entries(op, "style inputs", entries);
  FASTINV_CHECK(row_count < kMostIndex, op, ": at most ", kMostIndex - 1, " rows, got ", row_count);
  FASTINV_CHECK(rows.front() == 0 && rows.back() == row_count, op, ": rows must go from 0 to ", row_count, ", got ",
                rows.front(), " to ", rows.back());
  for (int64_t i = 0; i < entries; ++i) {
    FASTINV_CHECK(rows[i] <= rows[i + 1], op, ": rows must not fall, got ", rows[i], " before ", rows[i + 1]);
  }
}

// rows, inputs and outputs of `demodulation`. Returns the sum of the outputs.
inline int64_t check_layers(const char* op, const std::vector<int64_t>& rows, const std::vector<int64_t>& inputs,
                            const std::vector<int64_t>& outputs, int64_t row_count, const Tensor& weight_sumsq) {
  const size_t layers = rows.size();
  check_entries(op, "convolutions", static_cast<int64_t>(layers));
  FASTINV_CHECK(inputs.size() == layers && outputs.size() == layers, op, ": ", layers, " rows need as many inputs and ",
                "outputs, got ", inputs.size(), " and ", outputs.size());
  int64_t all_outputs = 0, weights = 0;
  for (size_t i = 0; i < layers; ++i) {
    FASTINV_CHECK(rows[i] >= 0 && inputs[i] >= 0 && outputs[i] >= 0 && rows[i] + inputs[i] <= row_count, op,
                  ": convolution ", i, " with rows from ", rows[i], ", ", inputs[i], " inputs and ", outputs[i],
                  " outputs does not fit styles with ", row_count, " rows");
    all_outputs += outputs[i];
    weights += inputs[i] * outputs[i];
  }
  FASTINV_CHECK(all_outputs + row_count < kMostIndex, op, ": at most ", kMostIndex - 1, " rows and outputs, got ",
                all_outputs + row_count);
  FASTINV_CHECK(weight_sumsq.dim() == 1 && weight_sumsq.numel() == weights, op, ": weight_sumsq must be flat with ",
                weights, " elements, the sum of inputs * outputs, got ", weight_sumsq.numel());
  return all_outputs;
}

// The tables of `style_gradients` against the tensors; `sums` are [samples, tiles, 5 or 1, channels] each.
inline void check_sums(const char* op, const std::vector<Tensor>& sums, const std::vector<int64_t>& next_rows,
                       const std::vector<int64_t>& rgb_rows, const std::vector<int64_t>& first_outputs, int64_t samples,
                       int64_t outputs, int64_t count) {
  check_entries(op, "layers", static_cast<int64_t>(sums.size()));
  FASTINV_CHECK(
      next_rows.size() == sums.size() && rgb_rows.size() == sums.size() && first_outputs.size() == sums.size(), op,
      ": ", sums.size(), " sums need as many next_rows, rgb_rows and first_outputs, got ", next_rows.size(), ", ",
      rgb_rows.size(), " and ", first_outputs.size());
  FASTINV_CHECK(count >= 0 && count + outputs < kMostIndex, op, ": count must be in 0..", kMostIndex - outputs - 1,
                ", got ", count);
  for (size_t i = 0; i < sums.size(); ++i) {
    const bool fits = sums[i].dim() == 4 && sums[i].size(0) == samples && sums[i].size(1) < kMostIndex &&
                      (sums[i].size(2) == 5 || sums[i].size(2) == 1);
    FASTINV_CHECK(fits, op, ": sums[", i, "] must be [", samples, ", tiles, 5 or 1, channels]");
    const int64_t channels = sums[i].size(3);
    FASTINV_CHECK(next_rows[i] + channels <= count && rgb_rows[i] + channels <= count, op, ": layer ", i, " with ",
                  channels, " channels does not fit ", count, " rows at ", next_rows[i], " or ", rgb_rows[i]);
    FASTINV_CHECK(first_outputs[i] + channels <= outputs, op, ": layer ", i, " with ", channels,
                  " channels does not fit ", outputs, " outputs at ", first_outputs[i]);
    FASTINV_CHECK(sums[i].size(2) == 5 || (rgb_rows[i] < 0 && first_outputs[i] < 0), op, ": sums[", i,
                  "] has only the first of the 5 sums, but rgb_rows and first_outputs ask for others");
  }
}

}  // namespace fastinv
