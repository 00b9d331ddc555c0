# Finds ONNX Runtime 1.22 or later: the target onnxruntime::onnxruntime.
#
# -DONNXRUNTIME_ROOT=FOLDER takes the release that was unpacked there. -DONNXRUNTIME_LIBRARY=FILE
# and -DONNXRUNTIME_INCLUDE_DIR=FOLDER take any library, such as that of the Python wheel, and the
# folder of onnxruntime_c_api.h. Without them, the system's is taken.
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h
    HINTS ${ONNXRUNTIME_ROOT}
    PATH_SUFFIXES include include/onnxruntime include/onnxruntime/core/session onnxruntime
    DOC "folder of onnxruntime_c_api.h")
find_library(ONNXRUNTIME_LIBRARY onnxruntime
    HINTS ${ONNXRUNTIME_ROOT}
    PATH_SUFFIXES lib lib64
    DOC "the library file of ONNX Runtime")

if(ONNXRUNTIME_INCLUDE_DIR)
    file(STRINGS ${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h interface
        REGEX "#define ORT_API_VERSION [0-9]+")
    string(REGEX MATCH "[0-9]+$" interface "${interface}")
    if(interface LESS 22)
        message(FATAL_ERROR
            "The headers in ${ONNXRUNTIME_INCLUDE_DIR} are of ONNX Runtime 1.${interface}; 1.22 or "
            "later is needed. Say where they are with -DONNXRUNTIME_INCLUDE_DIR=FOLDER.")
    endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(OnnxRuntime
    REQUIRED_VARS ONNXRUNTIME_LIBRARY ONNXRUNTIME_INCLUDE_DIR
    REASON_FAILURE_MESSAGE "set -DONNXRUNTIME_ROOT to an unpacked release, or \
-DONNXRUNTIME_LIBRARY and -DONNXRUNTIME_INCLUDE_DIR")

if(OnnxRuntime_FOUND AND NOT TARGET onnxruntime::onnxruntime)
    get_filename_component(folder ${ONNXRUNTIME_LIBRARY} DIRECTORY)
    set(location ${ONNXRUNTIME_LIBRARY})
    # Programs look for libonnxruntime.so.1, a link that the Python wheel leaves out. The libraries of
    # its providers are looked for beside it.
    if(location MATCHES "libonnxruntime\\.so\\.[0-9]" AND NOT EXISTS ${folder}/libonnxruntime.so.1)
        file(GLOB libraries ${folder}/libonnxruntime*.so*)
        set(folder ${CMAKE_BINARY_DIR}/onnxruntime)
        file(REMOVE_RECURSE ${folder})
        file(MAKE_DIRECTORY ${folder})
        foreach(library ${libraries})
            get_filename_component(name ${library} NAME)
            file(CREATE_LINK ${library} ${folder}/${name} SYMBOLIC)
        endforeach()
        set(location ${folder}/libonnxruntime.so.1)
        file(CREATE_LINK ${ONNXRUNTIME_LIBRARY} ${location} SYMBOLIC)
    endif()
    add_library(onnxruntime::onnxruntime SHARED IMPORTED)
    set_target_properties(onnxruntime::onnxruntime PROPERTIES
        IMPORTED_LOCATION ${location}
        IMPORTED_IMPLIB ${location} # on Windows, ONNXRUNTIME_LIBRARY is the import library
        INTERFACE_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR}
        INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${ONNXRUNTIME_INCLUDE_DIR})
endif()
mark_as_advanced(ONNXRUNTIME_INCLUDE_DIR ONNXRUNTIME_LIBRARY)
