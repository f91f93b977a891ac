# Finds the Arrow and Parquet C++ libraries that the pyarrow wheel ships.
#
# Looks in ARROW_ROOT (variable or environment), then in the folder that third_party/install.sh fills.
# Makes the imported target ArrowWheel::Parquet.
set(_arrow_hints "${ARROW_ROOT}" "$ENV{ARROW_ROOT}" "${THINKVG_DEPS}/python/pyarrow")
find_path(ArrowWheel_INCLUDE_DIR arrow/api.h HINTS ${_arrow_hints} PATH_SUFFIXES include NO_DEFAULT_PATH)
if(ArrowWheel_INCLUDE_DIR)
  get_filename_component(_arrow_root "${ArrowWheel_INCLUDE_DIR}" DIRECTORY)
  file(GLOB ArrowWheel_LIBRARY "${_arrow_root}/libarrow.so.[0-9]*00" "${_arrow_root}/lib/libarrow.so")
  file(GLOB ArrowWheel_PARQUET_LIBRARY "${_arrow_root}/libparquet.so.[0-9]*00" "${_arrow_root}/lib/libparquet.so")
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(ArrowWheel
  REQUIRED_VARS ArrowWheel_INCLUDE_DIR ArrowWheel_LIBRARY ArrowWheel_PARQUET_LIBRARY
  FAIL_MESSAGE "Arrow was not found. Run 'bash third_party/install.sh', or give its folder with -DARROW_ROOT=/path.")
if(ArrowWheel_FOUND AND NOT TARGET ArrowWheel::Parquet)
  add_library(ArrowWheel::Parquet INTERFACE IMPORTED)
  set_target_properties(ArrowWheel::Parquet PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${ArrowWheel_INCLUDE_DIR}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${ArrowWheel_INCLUDE_DIR}"
    INTERFACE_LINK_LIBRARIES "${ArrowWheel_PARQUET_LIBRARY};${ArrowWheel_LIBRARY}")
endif()
