// How the sums of synthesis_epilogue_backward are cut into tiles: by shapes alone, so that results do not depend on the
// machine. Twin of sum_tiles in fastinv/ops/synthesis.py.
#pragma once

#include <cstdint>

namespace fastinv {

// Codes of FORMS in fastinv/ops/synthesis.py: how a layer's convolution left its result.
enum class Form : int64_t { same, transposed, phases, shuffled };

inline bool filtered(Form form) { return form == Form::transposed || form == Form::phases; }

// Forms without a filter: tile t is the pixels t * sum_tile_pixels(pixels) and on.
inline int64_t sum_tile_pixels(int64_t pixels) {
  const int64_t wanted = pixels / 128 > 8 ? pixels / 128 : 8;
  return wanted < 256 ? wanted : 256;
}

// Forms with a filter: tile t = row_tile * column_tiles + column_tile is sum_tile_rows(height) x 64 pixels of the
// output.
constexpr int64_t kSumTileColumns = 64;
inline int64_t sum_tile_rows(int64_t height) {
  const int64_t wanted = height / 16 > 4 ? height / 16 : 4;
  return wanted < 32 ? wanted : 32;
}

inline int64_t sum_tiles(Form form, int64_t height, int64_t width) {
  int64_t tiles;
  if (filtered(form)) {
    const int64_t rows = sum_tile_rows(height);
    tiles = (height + rows - 1) / rows * ((width + kSumTileColumns - 1) / kSumTileColumns);
  } else {
    const int64_t pixels = height * width, step = sum_tile_pixels(pixels);
    tiles = (pixels + step - 1) / step;
  }
  return tiles > 1 ? tiles : 1;
}

}  // namespace fastinv
