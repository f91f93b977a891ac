# `cmake --install` makes a package that find_package(thinkvg) finds wherever it is moved to.
include(CMakePackageConfigHelpers)
get_filename_component(THINKVG_LIBTORCH "${LibTorch_INCLUDE_DIR}" DIRECTORY)
get_filename_component(THINKVG_ARROW "${ArrowWheel_INCLUDE_DIR}" DIRECTORY)
set(_package "${CMAKE_INSTALL_LIBDIR}/cmake/thinkvg")
configure_package_config_file(third_party/cmake/thinkvgConfig.cmake.in "${CMAKE_BINARY_DIR}/thinkvgConfig.cmake"
  INSTALL_DESTINATION "${_package}")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/thinkvgConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(DIRECTORY include/thinkvg DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(EXPORT thinkvgTargets NAMESPACE thinkvg:: DESTINATION "${_package}")
install(FILES "${CMAKE_BINARY_DIR}/thinkvgConfig.cmake" "${CMAKE_BINARY_DIR}/thinkvgConfigVersion.cmake"
  third_party/cmake/FindLibTorch.cmake third_party/cmake/FindArrowWheel.cmake
  third_party/cmake/FindOpenCVImages.cmake third_party/cmake/FindGdcmImages.cmake DESTINATION "${_package}")
