// Interface of the launchers of adam_record and adam_step: the end of an optimisation step in two passes, see
// fastinv/ops/adam.py. What changes from step to step is read from device memory, so that a CUDA graph can replay them.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

// Advances the clock, writes a row of the loss curves, and says which pictures got better.
struct AdamRecordParams {
  Dtype dtype;         // float32 or float64: of total, values, curves and lowest
  const void* total;   // [pictures]
  const void* values;  // [terms, pictures]
  int64_t* clock;      // [2]: row of the page, updates done
  void* curves;        // [page, 1 + terms, pictures]
  void* lowest;        // [pictures]
  int64_t* best_step;  // [pictures]
  int64_t* bad_step;   // [pictures]
  bool* better;        // [pictures]
  int64_t page, terms, pictures;
  bool last;  // every finite total is better
};

// best[better] = variable[better], then an update of the variable, its mean and its square.
struct AdamStepParams {
  Dtype dtype;  // float32 or float64: of all but better and clock
  void* variable;
  const void* gradient;
  void* mean;
  void* square;
  void* best;                // these five: [pictures, size]
  const bool* better;        // [pictures]
  const void* coefficients;  // [page, columns]: in the clock's row, the rate in `column`, the correction in the last
  const int64_t* clock;
  int64_t page, columns, column, pictures, size;
  double beta1, beta2, eps;
};

const char* adam_record(const AdamRecordParams& p, void* stream);
const char* adam_step(const AdamStepParams& p, void* stream);

}  // namespace fastinv::cuda
