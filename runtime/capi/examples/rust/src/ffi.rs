//! The part of dithead.h that the example uses. The structs must be those of the header: the
//! library compares their sizes in every `_init` call, and refuses others.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};

pub type dithead_status = i32;
pub const OK: dithead_status = 0;
pub const END_OF_STREAM: dithead_status = 2;
pub const ABI_VERSION: u32 = 1;
pub const NEXT_SAMPLE: i64 = -1;
pub const WAIT_FOREVER: i64 = -1;

#[repr(C)]
pub struct dithead_session {
    _private: [u8; 0],
}

#[repr(C)]
pub struct dithead_stream {
    _private: [u8; 0],
}

#[repr(C)]
pub struct dithead_session_options {
    pub struct_size: usize,
    pub bundle_path: *const c_char,
    pub provider: *const c_char,
    pub device: i32,
    pub threads: i32,
    pub provider_library: *const c_char,
    pub log: Option<extern "C" fn(*mut c_void, i32, *const c_char)>,
    pub log_user_data: *mut c_void,
    pub log_level: i32,
    pub reserved: i32,
}

#[repr(C)]
pub struct dithead_stream_options {
    pub struct_size: usize,
    pub seed: u32,
    pub steps: i32,
    pub detail: i32,
    pub reference: i32,
    pub face: i32,
    pub face_index: i32,
    pub face_place: [f32; 4],
    pub pixel_format: i32,
    pub overlap: i32,
    pub in_flight: i32,
    pub waiting: i32,
    pub idle: i32,
    pub patience_us: i64,
    pub realtime: i32,
    pub rate_numerator: i32,
    pub rate_denominator: i32,
    pub portrait_width: i32,
    pub portrait_height: i32,
    pub reserved: i32,
    pub portrait: *const u8,
    pub portrait_stride: usize,
}

#[repr(C)]
pub struct dithead_output {
    pub struct_size: usize,
    pub pixels: *mut u8,
    pub pixels_capacity: usize,
    pub stride: usize,
    pub samples: *mut f32,
    pub samples_capacity: usize,
    pub events: *mut c_void,
    pub events_capacity: usize,
    pub index: i64,
    pub pts_us: i64,
    pub width: i32,
    pub height: i32,
    pub left_alone: i32,
    pub reserved: i32,
    pub pixels_size: usize,
    pub first_sample: i64,
    pub sample_count: usize,
    pub event_count: usize,
}

extern "C" {
    pub fn dithead_abi_version() -> u32;
    pub fn dithead_last_error() -> *const c_char;
    pub fn dithead_session_options_init(
        options: *mut dithead_session_options,
        struct_size: usize,
    ) -> dithead_status;
    pub fn dithead_session_create(
        options: *const dithead_session_options,
        session: *mut *mut dithead_session,
    ) -> dithead_status;
    pub fn dithead_session_destroy(session: *mut dithead_session);
    pub fn dithead_stream_options_init(
        options: *mut dithead_stream_options,
        struct_size: usize,
    ) -> dithead_status;
    pub fn dithead_stream_create(
        session: *mut dithead_session,
        options: *const dithead_stream_options,
        stream: *mut *mut dithead_stream,
    ) -> dithead_status;
    pub fn dithead_stream_destroy(stream: *mut dithead_stream);
    pub fn dithead_push_audio(
        stream: *mut dithead_stream,
        samples: *const f32,
        count: usize,
        first_sample: i64,
    ) -> dithead_status;
    pub fn dithead_finish(stream: *mut dithead_stream) -> dithead_status;
    pub fn dithead_output_init(output: *mut dithead_output, struct_size: usize) -> dithead_status;
    pub fn dithead_pull_frame(
        stream: *mut dithead_stream,
        output: *mut dithead_output,
        timeout_us: i64,
    ) -> dithead_status;
}
