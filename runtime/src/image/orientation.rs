//! How an image is to be turned.

use image::metadata::Orientation;

/// The orientation of an image's EXIF data, or else of its XMP data, as Pillow's `exif_transpose`
/// finds it.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let found = exif.and_then(in_exif).or_else(|| xmp.and_then(in_xmp));
    found.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn in_xmp(xmp: &[u8]) -> Option<u8> {
    const NAME: &[u8] = b"tiff:Orientation";
    let places = xmp.windows(NAME.len()).enumerate().filter(|(_, window)| *window == NAME);
    places.map(|(start, _)| &xmp[start + NAME.len()..]).find_map(|rest| {
        let value = rest.strip_prefix(b"=\"").or_else(|| rest.strip_prefix(b">"))?;
        value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| digit - b'0')
    })
}

/// The tag 0x0112 of the first directory, of any numeric type and the first of several values: cameras write
/// more than the `SHORT` of the standard (TIFF 6.0, section 2).
fn in_exif(exif: &[u8]) -> Option<u8> {
    const ORIENTATION: u16 = 0x0112;
    // Of JPEG's own, which some write into other formats, too.
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    let tiff = Tiff { bytes: tiff, big_endian: tiff.starts_with(b"MM") };
    let directory = usize::try_from(tiff.number(4, 4)?).ok()?;
    let entries = tiff.number(directory, 2)? as usize;
    let entry = (0..entries)
        .map(|entry| directory + 2 + 12 * entry)
        .find(|&entry| tiff.number(entry, 2) == Some(ORIENTATION.into()))?;
    let value = tiff.value(entry)?;
    (0.0..=255.0).contains(&value).then_some(value as u8).filter(|&turn| f64::from(turn) == value)
}

struct Tiff<'b> {
    bytes: &'b [u8],
    big_endian: bool,
}

impl Tiff<'_> {
    /// An unsigned number of so many bytes.
    fn number(&self, at: usize, bytes: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(bytes)?)?.iter();
        let push = |number: u64, &byte: &u8| number << 8 | u64::from(byte);
        Some(if self.big_endian { bytes.fold(0, push) } else { bytes.rev().fold(0, push) })
    }

    /// The first value of a directory's entry.
    fn value(&self, entry: usize) -> Option<f64> {
        let kind = self.number(entry + 2, 2)?;
        let size = match kind {
            6 => 1,
            3 | 8 => 2,
            4 | 9 | 11 | 13 => 4,
            5 | 10 | 12 | 16 => 8,
            // Bytes, text and what is not a number.
            _ => return None,
        };
        let count = self.number(entry + 4, 4)?;
        let at = match count.checked_mul(size)? {
            0 => return None,
            1..=4 => entry + 8,
            _ => usize::try_from(self.number(entry + 8, 4)?).ok()?,
        };
        let number = self.number(at, size as usize)?;
        Some(match kind {
            6 => f64::from(number as i8),
            8 => f64::from(number as i16),
            9 => f64::from(number as i32),
            5 => self.number(at, 4)? as f64 / self.number(at + 4, 4)? as f64,
            10 => f64::from(self.number(at, 4)? as i32) / f64::from(self.number(at + 4, 4)? as i32),
            11 => f64::from(f32::from_bits(number as u32)),
            12 => f64::from_bits(number),
            _ => number as f64,
        })
    }
}
