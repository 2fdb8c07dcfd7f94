// Styles and demodulation of all layers, forward and backward: fastinv/ops/synthesis.py has the formulas.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

constexpr int kSynthesisLayers = 32;  // entries of the tables below; a generator for 2048x2048 has 20 inputs

// All tensors are dense, of dtype float32 or float64. Samples: at most 65535 * 8.
struct StylesParams {
  const void* w_plus;   // forward: [samples, inputs, width]
  const void* weight;   // [rows, width]
  const void* bias;     // forward: [rows]
  void* styles;         // forward: [samples, rows]
  const void* dstyles;  // backward: [samples, rows]
  void* dw_plus;        // backward: [samples, inputs, width]
  Dtype dtype;
  int64_t samples;
  int rows, width, inputs;
  int first_row[kSynthesisLayers + 1];  // of each input; the last is `rows`
};

struct DemodulationParams {
  const void* styles;        // [samples, rows]; backward: the scaled ones
  const void* weight_sumsq;  // for each layer [outputs, inputs], one after the other
  void* scaled;              // forward: [samples, rows]
  void* d;                   // forward: [samples, all outputs]
  void* scales;              // forward: [samples, layers]
  const void* dstyles;       // backward: [samples, rows]
  const void* q;             // backward: [samples, all outputs]
  const void* factors;       // backward: [samples, layers], what forward gave as `scales`
  void* result;              // backward: [samples, rows]
  Dtype dtype;
  bool scale;
  int64_t samples;
  int rows, layers;
  int row[kSynthesisLayers], inputs[kSynthesisLayers], outputs[kSynthesisLayers];
  double epsilon[kSynthesisLayers];
};

// Each enqueues one kernel on the stream (a cudaStream_t). They return null, or what CUDA said went wrong.
const char* synthesis_styles(const StylesParams& p, void* stream);
const char* synthesis_styles_backward(const StylesParams& p, void* stream);
const char* synthesis_demodulation(const DemodulationParams& p, void* stream);
const char* synthesis_demodulation_backward(const DemodulationParams& p, void* stream);

}  // namespace fastinv::cuda
