# Finds the parts of GDCM that read DICOM pictures. Debian's GDCMConfig.cmake also asks for VTK and Python files that
# its library package does not need. Makes the imported target GdcmImages::GdcmImages.
find_path(GdcmImages_INCLUDE_DIR gdcmImageReader.h PATH_SUFFIXES gdcm-3.0)
set(_gdcm_libraries "")
foreach(_module MSFF DSED DICT Common)
  find_library(GdcmImages_${_module}_LIBRARY gdcm${_module})
  mark_as_advanced(GdcmImages_${_module}_LIBRARY)
  list(APPEND _gdcm_libraries "${GdcmImages_${_module}_LIBRARY}")
endforeach()
mark_as_advanced(GdcmImages_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(GdcmImages
  REQUIRED_VARS GdcmImages_MSFF_LIBRARY GdcmImages_DSED_LIBRARY GdcmImages_DICT_LIBRARY GdcmImages_Common_LIBRARY
    GdcmImages_INCLUDE_DIR
  FAIL_MESSAGE "GDCM was not found. Run 'bash third_party/install.sh', which installs Debian's libgdcm-dev.")
if(GdcmImages_FOUND AND NOT TARGET GdcmImages::GdcmImages)
  add_library(GdcmImages::GdcmImages INTERFACE IMPORTED)
  set_target_properties(GdcmImages::GdcmImages PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${GdcmImages_INCLUDE_DIR}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${GdcmImages_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${_gdcm_libraries}")
endif()
