#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "thinkvg/image/raster.h"

namespace thinkvg::image {

// How far a DICOM file's numbers are taken on their way to a picture (PS3.3, C.11).
enum class DicomStage {
  stored,    // as they lie in the file: unused bits cleared, signed ones sign-extended
  modality,  // Modality LUT, else rescale slope and intercept
  voi,       // then VOI LUT, else VOI window (LINEAR, LINEAR_EXACT or SIGMOID)
};

// The numbers of a one-frame DICOM picture, equal to those of pydicom's pixel_array, apply_modality_lut and
// apply_voi_lut. MONOCHROME1 is not inverted here.
struct DicomValues {
  std::int64_t width = 0;
  std::int64_t height = 0;
  std::int64_t channels = 0;   // 1, or 3 (red, green, blue; from RGB, YBR or PALETTE COLOR)
  std::string photometric;     // "MONOCHROME1": the least value is white; "MONOCHROME2", "RGB"
  double lowest = 0;           // what the last stage's values range over: the window's or LUT's output, else the
  double highest = 0;          // least and largest value
  std::vector<double> values;  // [(y * width + x) * channels + channel]
};

// Takes uncompressed, deflated, RLE, JPEG (baseline, extended, lossless), JPEG-LS and JPEG 2000 files of up to 16 bits.
// Throws std::runtime_error naming `name` for a damaged file, for several frames, and for a kind that is not handled;
// std::invalid_argument when options.dicom_window is not among the file's windows. Thread-safe.
DicomValues read_dicom_values(std::string_view encoded, const std::string& name, DicomStage stage,
                              const ReadOptions& options = {});

// The 8-bit picture, by options.dicom, MONOCHROME1 inverted so that bone is bright:
//   window         round(255 * (v - lowest) / (highest - lowest)) of the voi stage
//   range          the same of the modality stage, from its least to its largest value
//   mimic_cxr_jpg  floor(255 * (v - least) / (largest - least)) of the stored values, inverted where needed, then the
//                  histogram equalized: the steps that MIMIC-CXR-JPG's authors describe (their files are then JPEG of
//                  quality 95)
// Colour pictures of 8 bits stay as they are.
Raster decode_dicom(std::string_view encoded, const std::string& name, const ReadOptions& options = {});

}  // namespace thinkvg::image
