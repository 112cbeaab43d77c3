//! What a PNG file says of its image besides pixels, wherever it stands: Pillow reads the chunks behind the
//! pixels, too.

use std::io::Read;

use flate2::read::ZlibDecoder;

/// EXIF and XMP data.
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) exif: Option<Vec<u8>>,
    pub(super) xmp: Option<Vec<u8>>,
}

/// Most bytes of a text that are looked at.
const MAX_TEXT: u64 = 1 << 20;

/// The metadata of a PNG file; of several of a kind the last.
pub(super) fn metadata(file: &[u8]) -> Metadata {
    let mut found = Metadata::default();
    let mut profile = None;
    let mut rest = file.get(8..).unwrap_or_default();
    while let Some((name, data, behind)) = chunk(rest) {
        rest = behind;
        match name {
            b"eXIf" => found.exif = Some(data.to_vec()),
            b"tEXt" | b"zTXt" | b"iTXt" => match text(name, data) {
                Some((b"Raw profile type exif", text)) => profile = from_hex(&text),
                Some((b"XML:com.adobe.xmp", text)) => found.xmp = Some(text),
                _ => {}
            },
            _ => {}
        }
    }
    found.exif = found.exif.or(profile);
    found
}

/// Name, data and what comes behind the checksum of the chunk that bytes begin with.
fn chunk(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let (name, rest) = rest.split_at_checked(4)?;
    let (data, rest) = rest.split_at_checked(length)?;
    Some((name, data, rest.get(4..).unwrap_or_default()))
}

/// Keyword and text of a chunk of text (PNG specification, section 11.3.3).
fn text<'d>(name: &[u8], data: &'d [u8]) -> Option<(&'d [u8], Vec<u8>)> {
    let split = |bytes: &'d [u8]| {
        let end = bytes.iter().position(|&byte| byte == 0)?;
        Some((&bytes[..end], &bytes[end + 1..]))
    };
    let (keyword, rest) = split(data)?;
    let (is_compressed, text) = match name {
        b"tEXt" => (false, rest),
        b"zTXt" => (true, rest.get(1..)?),
        _ => {
            let (is_compressed, rest) = (*rest.first()? == 1, rest.get(2..)?);
            let (_language, rest) = split(rest)?;
            (is_compressed, split(rest)?.1)
        }
    };
    let mut read = Vec::new();
    if is_compressed {
        ZlibDecoder::new(text).take(MAX_TEXT).read_to_end(&mut read).ok()?;
    } else {
        text.take(MAX_TEXT).read_to_end(&mut read).ok()?;
    }
    Some((keyword, read))
}

/// The bytes of a profile as ImageMagick writes it: a line with its name and one with its length, then lines of
/// hexadecimal digits.
fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|&byte| byte == b'\n').skip(3);
    let digits: Vec<u8> =
        lines.flatten().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    hex::decode(digits).ok()
}
