//! A portrait that speaks: a safe wrapper for what the example needs.

use std::ffi::{CStr, CString};
use std::mem::{size_of, MaybeUninit};

use crate::ffi;

fn done(status: ffi::dithead_status) -> Result<ffi::dithead_status, String> {
    if status >= ffi::OK {
        return Ok(status);
    }
    // SAFETY: the text lives until the next call in this thread that fails.
    let text = unsafe { CStr::from_ptr(ffi::dithead_last_error()) };
    Err(text.to_string_lossy().into_owned())
}

/// A stream that shows a still picture.
pub struct Portrait {
    stream: *mut ffi::dithead_stream,
    size: usize,
}

// SAFETY: a handle may move between threads; calls need `&mut self`, so they come one at a time.
unsafe impl Send for Portrait {}

impl Portrait {
    /// `rgb`: rows of `width` pixels, of three bytes each.
    pub fn open(bundle: &str, width: usize, height: usize, rgb: &[u8]) -> Result<Self, String> {
        let bundle = CString::new(bundle).map_err(|error| error.to_string())?;
        if rgb.len() != width * height * 3 {
            return Err(format!("a portrait of {} bytes is not {width}x{height}", rgb.len()));
        }
        // SAFETY: the structs are filled by their _init functions, and pointers outlive each call.
        unsafe {
            if ffi::dithead_abi_version() != ffi::ABI_VERSION {
                return Err("libdithead has another ABI version".into());
            }
            let mut setup = MaybeUninit::<ffi::dithead_session_options>::uninit();
            done(ffi::dithead_session_options_init(
                setup.as_mut_ptr(),
                size_of::<ffi::dithead_session_options>(),
            ))?;
            let mut setup = setup.assume_init();
            setup.bundle_path = bundle.as_ptr();

            let mut options = MaybeUninit::<ffi::dithead_stream_options>::uninit();
            done(ffi::dithead_stream_options_init(
                options.as_mut_ptr(),
                size_of::<ffi::dithead_stream_options>(),
            ))?;
            let mut options = options.assume_init();
            options.portrait = rgb.as_ptr();
            options.portrait_width = width as i32;
            options.portrait_height = height as i32;
            options.portrait_stride = width * 3;

            let (mut session, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
            done(ffi::dithead_session_create(&setup, &mut session))?;
            let opened = done(ffi::dithead_stream_create(session, &options, &mut stream));
            ffi::dithead_session_destroy(session); // the stream keeps what it needs
            opened.map(|_| Self { stream, size: rgb.len() })
        }
    }

    /// Mono, 16 kHz.
    pub fn hear(&mut self, samples: &[f32]) -> Result<(), String> {
        // SAFETY: the samples are copied.
        done(unsafe {
            ffi::dithead_push_audio(self.stream, samples.as_ptr(), samples.len(), ffi::NEXT_SAMPLE)
        })
        .map(drop)
    }

    /// Declares the sound ended.
    pub fn finish(&mut self) -> Result<(), String> {
        // SAFETY: the stream is open.
        done(unsafe { ffi::dithead_finish(self.stream) }).map(drop)
    }

    /// The next picture; `None` after the last.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut pixels = vec![0; self.size];
        // SAFETY: the output is filled by its _init function, and the buffer has that capacity.
        let status = unsafe {
            let mut out = MaybeUninit::<ffi::dithead_output>::uninit();
            done(ffi::dithead_output_init(out.as_mut_ptr(), size_of::<ffi::dithead_output>()))?;
            let mut out = out.assume_init();
            out.pixels = pixels.as_mut_ptr();
            out.pixels_capacity = pixels.len();
            done(ffi::dithead_pull_frame(self.stream, &mut out, ffi::WAIT_FOREVER))?
        };
        Ok((status != ffi::END_OF_STREAM).then_some(pixels))
    }
}

impl Drop for Portrait {
    fn drop(&mut self) {
        // SAFETY: nobody else has the handle.
        unsafe { ffi::dithead_stream_destroy(self.stream) }
    }
}
