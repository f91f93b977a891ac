#pragma once

#include <string>
#include <string_view>

#include "thinkvg/grounding/box.h"

namespace thinkvg::image {

// Whether the bytes of a file's beginning (132 or more) are those of a DICOM file.
bool is_dicom(std::string_view head);

// A DICOM file whose structure was walked from end to end: every element, item and fragment lies where the lengths say,
// and inside the file. GDCM stops the whole process (by assert) on some files where that is not so; it only gets files
// that passed here.
struct CheckedDicom {
  grounding::ImageSize size;  // Columns, Rows
  // Not empty for a deflated file: the same file inflated, in Explicit VR Little Endian.
  std::string inflated;
};

// Throws std::runtime_error naming `name` and what is wrong. Thread-safe.
CheckedDicom check_dicom(std::string_view encoded, std::string_view name);

}  // namespace thinkvg::image
