# One target per folder. A header is reached as "kvcompress/<module>/<file>.h" through an include
# root that belongs to its target alone, so including a header without linking its target does not build.

# kvc_include_root(<target> <module> <folder> [<scope>]): gives <target> the include root of <folder>.
function(kvc_include_root target module folder)
  set(scope PUBLIC ${ARGN})
  list(GET scope -1 scope)
  set(root ${CMAKE_BINARY_DIR}/include/${module})
  cmake_path(GET module PARENT_PATH parent)
  file(MAKE_DIRECTORY ${root}/kvcompress/${parent})
  if(NOT EXISTS ${root}/kvcompress/${module})
    file(CREATE_LINK ${folder} ${root}/kvcompress/${module} SYMBOLIC)
  endif()
  target_include_directories(${target} ${scope} $<BUILD_INTERFACE:${root}>)
endfunction()

# kvc_library(<module> SRCS ... [PUBLIC ...] [PRIVATE ...]): target kvc_<module>, from the current folder.
function(kvc_library module)
  cmake_parse_arguments(ARG "" "" "SRCS;PUBLIC;PRIVATE" ${ARGN})
  set(target kvc_${module})
  add_library(${target} STATIC ${ARG_SRCS})
  kvc_include_root(${target} ${module} ${CMAKE_CURRENT_SOURCE_DIR})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${ARG_PUBLIC} PRIVATE ${ARG_PRIVATE} $<BUILD_INTERFACE:kvc_options>)
endfunction()

# kvc_install(<set> <module> <header>...): makes target kvc_<module> part of an export set, as kvcompress::<module>, and
# installs these of its headers. They go where #include finds them: "kvcompress/<module>/<file>.h", those of
# core "kvcompress/<file>.h".
function(kvc_install set module)
  set_target_properties(kvc_${module} PROPERTIES EXPORT_NAME ${module})
  install(TARGETS kvc_${module} EXPORT ${set} INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  string(REGEX REPLACE "/core$" "" folder kvcompress/${module})
  install(FILES ${ARGN} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/${folder})
endfunction()

# kvc_test(<name> SRCS ... LINK ...): a GoogleTest binary; each of its tests is a CTest test.
function(kvc_test name)
  cmake_parse_arguments(ARG "" "" "SRCS;LINK" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} GTest::gmock GTest::gtest_main kvc_options)
  target_compile_definitions(${name} PRIVATE KVC_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  if(KVC_SANITIZE)
    # What is looked at is the code under test; optimizing the tests takes half of such a build.
    target_compile_options(${name} PRIVATE -O0)
  endif()
  if(KVC_SANITIZE STREQUAL "thread")
    target_sources(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests/sanitizer/absl_tsan.cc)
    target_link_libraries(${name} PRIVATE absl::synchronization ${CMAKE_DL_LIBS})
  endif()
  gtest_discover_tests(${name} DISCOVERY_TIMEOUT 60 PROPERTIES TIMEOUT 300)
endfunction()

# kvc_fuzzer(<name> SRCS ... LINK ...): a libFuzzer binary; only in builds with KVC_FUZZ.
function(kvc_fuzzer name)
  if(NOT KVC_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SRCS;LINK" ${ARGN})
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE ${ARG_LINK} kvc_options)
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
endfunction()
