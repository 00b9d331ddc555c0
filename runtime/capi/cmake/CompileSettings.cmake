# How everything here is compiled: the target dithead_settings.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
    set(CMAKE_BUILD_TYPE Release CACHE STRING "type of build" FORCE)
endif()

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_CXX_EXTENSIONS OFF)

add_library(dithead_settings INTERFACE)
target_compile_features(dithead_settings INTERFACE c_std_99 cxx_std_17)
if(MSVC)
    target_compile_options(dithead_settings INTERFACE /W4 /fp:strict)
else()
    # Multiplications and additions are rounded one by one, as in Python: the same frames.
    target_compile_options(dithead_settings INTERFACE
        -Wall -Wextra -Wpedantic -ffp-contract=off)
endif()

if(DITHEAD_SANITIZE)
    target_compile_options(dithead_settings INTERFACE
        -g -fno-omit-frame-pointer -fsanitize=${DITHEAD_SANITIZE} -fno-sanitize-recover=all)
    target_link_options(dithead_settings INTERFACE -fsanitize=${DITHEAD_SANITIZE})
endif()
