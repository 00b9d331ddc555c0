//! A still portrait that speaks: raw 16 kHz mono floats on stdin, raw RGB frames on stdout.
//!
//!     ffmpeg -i speech.mp3 -f f32le -ac 1 -ar 16000 - |
//!         talking-portrait tiny-cpu 640 480 portrait.rgb > frames.rgb

mod ffi;
mod portrait;

use std::io::{Read, Write};
use std::process::ExitCode;

use portrait::Portrait;

fn run(arguments: &[String]) -> Result<(), String> {
    let [bundle, width, height, path] = arguments else {
        return Err("usage: talking-portrait BUNDLE WIDTH HEIGHT PORTRAIT".into());
    };
    let number = |text: &String| text.parse::<usize>().map_err(|error| format!("{text}: {error}"));
    let rgb = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let mut speaker = Portrait::open(bundle, number(width)?, number(height)?, &rgb)?;

    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let samples: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|sample| f32::from_le_bytes([sample[0], sample[1], sample[2], sample[3]]))
        .collect();
    speaker.hear(&samples)?;
    speaker.finish()?;

    let mut out = std::io::stdout().lock();
    while let Some(frame) = speaker.next_frame()? {
        out.write_all(&frame).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
