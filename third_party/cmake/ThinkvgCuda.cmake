# libthinkvg_cuda.so out of src/*/cuda, which nn/cuda_kernels.cc loads on the first CUDA call. Apart from the static
# libraries so that no program needs a CUDA library to start. Included from the top, where a language may be enabled.
set(THINKVG_HAS_CUDA OFF)
if(THINKVG_CUDA STREQUAL "OFF")
  return()
endif()
include(CheckLanguage)
check_language(CUDA)
set(_lacking "")
if(NOT CMAKE_CUDA_COMPILER)
  set(_lacking "nvcc was not found: install a CUDA 13 toolkit, or give it with -DCMAKE_CUDA_COMPILER=/path/to/nvcc")
elseif(NOT TARGET LibTorch::C10Cuda)
  set(_lacking "this LibTorch has no CUDA part")
endif()
if(_lacking)
  if(NOT THINKVG_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "THINKVG_CUDA=${THINKVG_CUDA}, but ${_lacking}.")
  endif()
  message(STATUS "No CUDA kernels: ${_lacking}")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${THINKVG_CUDA_ARCHITECTURES})
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
file(GLOB _sources CONFIGURE_DEPENDS "${CMAKE_SOURCE_DIR}/src/*/cuda/*.cu" "${CMAKE_SOURCE_DIR}/src/*/cuda/*.cc")
add_library(thinkvg_cuda SHARED ${_sources})
target_compile_options(thinkvg_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wshadow=local>")
target_compile_definitions(thinkvg_cuda PRIVATE USE_C10D_NCCL)  # for src/dist/cuda, where nccl.h is found
target_include_directories(thinkvg_cuda PRIVATE "${CMAKE_SOURCE_DIR}/src" "${CMAKE_SOURCE_DIR}/include")
set_target_properties(thinkvg_cuda PROPERTIES
  CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON  # CMake 3.25 knows no flag of nvcc 13 for C++20
  CXX_VISIBILITY_PRESET hidden CUDA_VISIBILITY_PRESET hidden
  CUDA_RUNTIME_LIBRARY Shared  # LibTorch's own runtime: one in the process
  LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/lib" SKIP_BUILD_RPATH ON INSTALL_RPATH "")
target_link_libraries(thinkvg_cuda PRIVATE LibTorch::C10Cuda "${LibTorch_CUDA_LIBRARY}" CUDA::cudart)
install(TARGETS thinkvg_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
set(THINKVG_HAS_CUDA ON)
