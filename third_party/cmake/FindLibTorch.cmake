# Finds LibTorch without asking for a CUDA toolkit or a GPU.
#
# Looks in LIBTORCH (variable or environment), CMAKE_PREFIX_PATH, then in the folder that
# third_party/install.sh fills. Makes the imported targets
#   LibTorch::LibTorch   headers, libtorch_cpu and libc10: enough for every program; CUDA is loaded at run time
#   LibTorch::C10Cuda    streams and devices, for libthinkvg_cuda.so (where this LibTorch has CUDA)
# and sets LibTorch_VERSION, LibTorch_HAS_CUDA.
set(_libtorch_hints "${LIBTORCH}" "$ENV{LIBTORCH}" ${CMAKE_PREFIX_PATH} "${THINKVG_DEPS}/python/torch")
find_path(LibTorch_INCLUDE_DIR ATen/core/Tensor.h HINTS ${_libtorch_hints} PATH_SUFFIXES include torch/include NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS ${_libtorch_hints} PATH_SUFFIXES lib torch/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS ${_libtorch_hints} PATH_SUFFIXES lib torch/lib NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS ${_libtorch_hints} PATH_SUFFIXES lib torch/lib NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS ${_libtorch_hints} PATH_SUFFIXES lib torch/lib NO_DEFAULT_PATH)
mark_as_advanced(LibTorch_C10_CUDA_LIBRARY LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY)

if(LibTorch_INCLUDE_DIR AND EXISTS "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h")
  file(STRINGS "${LibTorch_INCLUDE_DIR}/torch/headeronly/version.h" _libtorch_version REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*PATCH ([0-9]+).*" "\\1.\\2.\\3" LibTorch_VERSION "${_libtorch_version}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_INCLUDE_DIR
  VERSION_VAR LibTorch_VERSION
  FAIL_MESSAGE "LibTorch was not found. Run 'bash third_party/install.sh', or give its folder with -DLIBTORCH=/path/to/libtorch.")

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  set(LibTorch_HAS_CUDA OFF)
  if(LibTorch_CUDA_LIBRARY)
    set(LibTorch_HAS_CUDA ON)
  endif()
  # LibTorch ships headers of another fmt than the one that spdlog was built with; the system's must win.
  set(_libtorch_includes "${LibTorch_INCLUDE_DIR}" "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
  find_path(LibTorch_SYSTEM_FMT_DIR fmt/format.h PATHS /usr/include NO_DEFAULT_PATH)
  mark_as_advanced(LibTorch_SYSTEM_FMT_DIR)
  if(LibTorch_SYSTEM_FMT_DIR AND EXISTS "${LibTorch_INCLUDE_DIR}/fmt")
    # A link of its own, because compilers ignore requests to search /usr/include earlier.
    file(MAKE_DIRECTORY "${CMAKE_BINARY_DIR}/CMakeFiles/system_fmt")
    file(CREATE_LINK "${LibTorch_SYSTEM_FMT_DIR}/fmt" "${CMAKE_BINARY_DIR}/CMakeFiles/system_fmt/fmt" SYMBOLIC)
    list(PREPEND _libtorch_includes "${CMAKE_BINARY_DIR}/CMakeFiles/system_fmt")
  endif()
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  set_target_properties(LibTorch::LibTorch PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${_libtorch_includes}"
    INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${_libtorch_includes}"
    # ATen's header-only parallel_for runs on one thread unless it is compiled with OpenMP.
    INTERFACE_COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CXX>:-fopenmp>"
    # libtorch_cpu exports its own copy of std::filesystem; with the real one first, a program that merely uses that
    # does not load LibTorch. libtorch_cpu finds its own libraries by its run path, which the linker does not follow.
    INTERFACE_LINK_LIBRARIES "-lstdc++;${LibTorch_CPU_LIBRARY};${LibTorch_C10_LIBRARY}"
    INTERFACE_LINK_OPTIONS "-fopenmp;LINKER:--as-needed;LINKER:--unresolved-symbols=ignore-in-shared-libs")
  if(LibTorch_HAS_CUDA AND LibTorch_C10_CUDA_LIBRARY)
    add_library(LibTorch::C10Cuda INTERFACE IMPORTED)
    set_target_properties(LibTorch::C10Cuda PROPERTIES
      INTERFACE_LINK_LIBRARIES "LibTorch::LibTorch;${LibTorch_C10_CUDA_LIBRARY}")
  endif()
endif()
