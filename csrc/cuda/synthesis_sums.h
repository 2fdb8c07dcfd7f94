// From the partial sums of synthesis_epilogue_backward to style gradients, and the scaling of the image gradient:
// fastinv/ops/synthesis.py has the formulas.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

constexpr int kSumLayers = 32;  // entries of the table below; a generator for 2048x2048 has 20 layers
constexpr int kSumPlanes = 5;

// Tiles that one block adds, and the partial sums that remain.
constexpr int kTilesPerChunk = 64;
constexpr int sum_chunks(int tiles) { return (tiles + kTilesPerChunk - 1) / kTilesPerChunk; }

struct SumLayer {
  const void* sums;                     // [samples, tiles, planes, channels]
  int tiles, planes, channels;          // planes: 5, or 1 for the first of them alone
  int next_row, rgb_row, first_output;  // -1 for none
};

// All tensors are dense, of dtype float32 or float64. Samples: at most 65535.
struct StyleGradientsParams {
  SumLayer layers[kSumLayers];
  const void* d;        // [samples, outputs]
  const void* bias;     // [outputs]
  const void* unscale;  // [samples] or null
  double* partial;      // scratch: [samples, sum over the layers of sum_chunks(tiles) * planes * channels]
  void* dstyles;        // [samples, rows]
  void* q;              // [samples, outputs]
  Dtype dtype;
  int64_t samples;
  int layer_count, rows, outputs;
};

// Elements of a sample that one block scales; `largest` holds one magnitude for each.
constexpr int kScaleTile = 4096;
constexpr int64_t scale_tiles(int64_t elements) { return (elements + kScaleTile - 1) / kScaleTile; }

struct GradientScaleParams {
  const void* gradient;  // [samples, elements]
  void* scaled;          // [samples, elements]
  void* inverse;         // [samples]
  void* largest;         // scratch: [samples, scale_tiles(elements)]
  Dtype dtype;
  int64_t samples, elements;
};

// Each enqueues two kernels on the stream (a cudaStream_t). They return null, or what CUDA said went wrong.
const char* synthesis_style_gradients(const StyleGradientsParams& p, void* stream);
const char* synthesis_gradient_scale(const GradientScaleParams& p, void* stream);

}  // namespace fastinv::cuda
