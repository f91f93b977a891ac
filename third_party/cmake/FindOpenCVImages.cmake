# Finds OpenCV's core, imgproc and imgcodecs, which Debian packages apart from the rest of OpenCV and without the
# files of OpenCVConfig.cmake's other modules. Makes the imported target OpenCVImages::OpenCVImages.
find_path(OpenCVImages_INCLUDE_DIR opencv2/core.hpp PATH_SUFFIXES opencv4)
set(_opencv_libraries "")
foreach(_module imgcodecs imgproc core)
  find_library(OpenCVImages_${_module}_LIBRARY opencv_${_module})
  mark_as_advanced(OpenCVImages_${_module}_LIBRARY)
  list(APPEND _opencv_libraries "${OpenCVImages_${_module}_LIBRARY}")
endforeach()
mark_as_advanced(OpenCVImages_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OpenCVImages
  REQUIRED_VARS OpenCVImages_core_LIBRARY OpenCVImages_imgproc_LIBRARY OpenCVImages_imgcodecs_LIBRARY
    OpenCVImages_INCLUDE_DIR
  FAIL_MESSAGE "OpenCV was not found. Run 'bash third_party/install.sh', which installs Debian's packages of it.")
if(OpenCVImages_FOUND AND NOT TARGET OpenCVImages::OpenCVImages)
  add_library(OpenCVImages::OpenCVImages INTERFACE IMPORTED)
  set_target_properties(OpenCVImages::OpenCVImages PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${OpenCVImages_INCLUDE_DIR}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${OpenCVImages_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${_opencv_libraries}")
endif()
