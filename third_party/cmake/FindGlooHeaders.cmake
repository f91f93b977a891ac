# Finds the headers of Gloo, the library inside libtorch_cpu that joins processes on CPUs. LibTorch's wheel does not
# ship them; the few types that c10d/ProcessGroupGloo.hpp names are the same in Debian's. Nothing of Debian's library is
# linked. Makes the target GlooHeaders::GlooHeaders.
find_path(GlooHeaders_INCLUDE_DIR gloo/context.h)
mark_as_advanced(GlooHeaders_INCLUDE_DIR)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(GlooHeaders REQUIRED_VARS GlooHeaders_INCLUDE_DIR
  FAIL_MESSAGE "The headers of Gloo were not found. Run 'bash third_party/install.sh', which installs libgloo-dev.")
if(GlooHeaders_FOUND AND NOT TARGET GlooHeaders::GlooHeaders)
  add_library(GlooHeaders::GlooHeaders INTERFACE IMPORTED)
  set_target_properties(GlooHeaders::GlooHeaders PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${GlooHeaders_INCLUDE_DIR}" INTERFACE_COMPILE_DEFINITIONS USE_C10D_GLOO)
endif()
