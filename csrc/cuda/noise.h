// The noise regulariser of the StyleGAN2 projector and the normalisation of noise maps: fastinv/ops/noise.py.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace fastinv::cuda {

constexpr int kNoiseMaps = 24;          // entries of the tables below; a generator for 4096x4096 has 21 maps
constexpr int kLargestNoise = 64 << 6;  // height and width
constexpr int kNoiseLevels = 10;        // of the largest
constexpr int kNoiseTile = 64;          // height and width of what a block takes
constexpr int kNormalizeTile = 4096;    // elements

// Level l of a map of R x R is its average over squares of 2^l: S x S with S = R >> l, down to the first S <= 8. Levels
// below `tail`, the first of at most one tile, are taken apart in tiles; one block does all from there on.
struct NoiseMap {
  const void* map;  // [samples, size, size]; given, like the next three
  void* gradient;   // backward: the same; normalize: the map itself
  int size, samples;
  int levels, tail;  // what follows is written by noise_layout
  int means;         // row of sample 0, level 0 in `means`; the next sample is `levels` rows on
  int partials;      // of sample 0 in `partials`; the next sample is sample_partials on
  int sample_partials;
  int first_block;              // of the launch; written by the launcher
  int sample_pyramid;           // elements from one sample's levels to the next one's
  int64_t pyramid;              // of sample 0 in `pyramid`
  int level[kNoiseLevels];      // where a level's picture begins in its sample's levels (from level 1 on)
  int tile_sums[kNoiseLevels];  // where a level's tiles begin in its sample's partial sums (below `tail`)
};

// All tensors are dense; dtype float32 or float64.
struct NoiseParams {
  NoiseMap maps[kNoiseMaps];
  void* pyramid;       // levels 1 and on of all maps and samples
  double* means;       // [.., 2]: mean of x times its left neighbour, and its upper one, for each map, sample, level
  double* partials;    // scratch of the forward pass: [.., 2]
  void* value;         // forward: [samples]
  const void* dvalue;  // backward: [samples]
  Dtype dtype;
  int count;
  int samples;  // of the batch; a map has as many or 1
};

struct NoiseSizes {
  int64_t pyramid, means, partials;  // elements, pairs, pairs
};

// Fills in the layout from the sizes and samples of the maps. Says what `pyramid`, `means`, `partials` must hold.
NoiseSizes noise_layout(NoiseParams& p);

struct NormalizeNoiseParams {
  void* maps[kNoiseMaps];  // [samples, elements], normalised in place
  int64_t samples[kNoiseMaps], elements[kNoiseMaps];
  int first_block[kNoiseMaps];  // written by the launcher
  double* partials;             // scratch: [normalize_noise_partials, 2]
  Dtype dtype;
  int count;
};
int64_t normalize_noise_partials(const NormalizeNoiseParams& p);  // one for each tile of each sample

// They enqueue three, one and two kernels on the stream (a cudaStream_t) and return null, or what CUDA said went wrong.
const char* noise_regularization(const NoiseParams& p, void* stream);
const char* noise_regularization_backward(const NoiseParams& p, void* stream);
const char* normalize_noise(const NormalizeNoiseParams& p, void* stream);

}  // namespace fastinv::cuda
