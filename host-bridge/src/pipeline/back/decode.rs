//! Takes off a content coding that was not asked for (section 6.6), so that what is in it can be read.
//!
//! Input is taken in small slices: a bomb grows by a thousand, and what a slice makes must fit in memory.

use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header};

/// Input that is decoded at once: at most about 128 KiB come out.
pub(super) const SLICE: usize = 128;

/// Decodes one body.
#[derive(Debug)]
pub(super) enum Decoder {
    Gzip(MultiGzDecoder<Vec<u8>>),
    /// `deflate` says zlib; some servers send bare deflate. The first byte tells.
    DeflateUnknown,
    Zlib(ZlibDecoder<Vec<u8>>),
    Deflate(DeflateDecoder<Vec<u8>>),
}

/// How a body is encoded.
#[derive(Debug)]
pub(super) enum Coding {
    Identity,
    Known(Box<Decoder>),
    Unknown,
}

/// What the headers say.
pub(super) fn coding(headers: &HeaderMap) -> Coding {
    let mut found = Coding::Identity;
    let values = headers.get_all(header::CONTENT_ENCODING).iter();
    for name in values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')) {
        let name = name.trim_ascii().to_ascii_lowercase();
        found = match (found, name.as_slice()) {
            (found, b"identity" | b"") => found,
            (Coding::Identity, b"gzip" | b"x-gzip") => {
                Coding::Known(Box::new(Decoder::Gzip(MultiGzDecoder::new(Vec::new()))))
            }
            (Coding::Identity, b"deflate") => Coding::Known(Box::new(Decoder::DeflateUnknown)),
            // One upon another is as good as unknown.
            _ => return Coding::Unknown,
        };
    }
    found
}

impl Decoder {
    /// Decodes at most [`SLICE`] bytes.
    pub(super) fn push(&mut self, slice: &[u8]) -> io::Result<Bytes> {
        if let (Self::DeflateUnknown, Some(first)) = (&*self, slice.first()) {
            *self = if first & 0x0f == 8 {
                Self::Zlib(ZlibDecoder::new(Vec::new()))
            } else {
                Self::Deflate(DeflateDecoder::new(Vec::new()))
            };
        }
        match self {
            Self::Gzip(decoder) => decoder.write_all(slice)?,
            Self::Zlib(decoder) => decoder.write_all(slice)?,
            Self::Deflate(decoder) => decoder.write_all(slice)?,
            Self::DeflateUnknown => {}
        }
        self.flush()?;
        Ok(self.take())
    }

    /// The input is over. An error when it ends too early.
    pub(super) fn finish(&mut self) -> io::Result<Bytes> {
        match self {
            Self::Gzip(decoder) => decoder.try_finish()?,
            Self::Zlib(decoder) => decoder.try_finish()?,
            Self::Deflate(decoder) => decoder.try_finish()?,
            Self::DeflateUnknown => {}
        }
        Ok(self.take())
    }

    /// What was decoded must not wait for more (R14).
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Gzip(decoder) => decoder.flush(),
            Self::Zlib(decoder) => decoder.flush(),
            Self::Deflate(decoder) => decoder.flush(),
            Self::DeflateUnknown => Ok(()),
        }
    }

    fn take(&mut self) -> Bytes {
        let out = match self {
            Self::Gzip(decoder) => decoder.get_mut(),
            Self::Zlib(decoder) => decoder.get_mut(),
            Self::Deflate(decoder) => decoder.get_mut(),
            Self::DeflateUnknown => return Bytes::new(),
        };
        Bytes::from(std::mem::take(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write};
    use test_case::test_case;

    fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        match coding {
            "gzip" => {
                let mut encoder = write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            "zlib" => {
                let mut encoder = write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            _ => {
                let mut encoder = write::DeflateEncoder::new(Vec::new(), level);
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    fn decoder(name: &'static str) -> Decoder {
        let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, name.parse().unwrap())]);
        match coding(&headers) {
            Coding::Known(decoder) => *decoder,
            other => panic!("{other:?}"),
        }
    }

    #[test_case("gzip", "gzip")]
    #[test_case("zlib", "deflate")]
    #[test_case("raw", "Deflate")]
    fn decodes(kind: &str, name: &'static str) {
        let text = "data: hello\n\n".repeat(500);
        let bytes = encoded(kind, text.as_bytes());
        for chunk in [1, 100] {
            let mut decoder = decoder(name);
            let mut out = Vec::new();
            for slice in bytes.chunks(chunk) {
                out.extend_from_slice(&decoder.push(slice).unwrap());
            }
            out.extend_from_slice(&decoder.finish().unwrap());
            assert_eq!(out, text.as_bytes());
        }
    }

    #[test]
    fn a_body_that_is_cut_is_an_error() {
        let bytes = encoded("gzip", b"hello hello hello");
        let mut decoder = decoder("gzip");
        decoder.push(&bytes[..bytes.len() - 9]).unwrap();
        assert!(decoder.finish().is_err());
    }

    #[test]
    fn a_slice_of_a_bomb_is_bounded() {
        let bomb = encoded("gzip", &vec![0; 16 << 20]);
        let mut decoder = decoder("gzip");
        let most = bomb.chunks(SLICE).map(|slice| decoder.push(slice).unwrap().len()).max().unwrap();
        assert!(most <= 256 << 10, "{most}");
    }

    #[test_case("br")]
    #[test_case("gzip, gzip")]
    #[test_case("zstd")]
    fn unknown(name: &'static str) {
        let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, name.parse().unwrap())]);
        assert!(matches!(coding(&headers), Coding::Unknown));
    }
}
