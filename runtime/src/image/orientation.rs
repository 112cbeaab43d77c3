//! How an image is to be turned.

use image::metadata::Orientation;

/// The orientation of an image's EXIF data, or else of its XMP data, as Pillow's `exif_transpose`
/// finds it.
pub(super) fn orientation(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Orientation {
    let in_exif = exif.and_then(Orientation::from_exif_chunk);
    let found = in_exif.or_else(|| xmp.and_then(in_xmp).and_then(Orientation::from_exif));
    found.unwrap_or(Orientation::NoTransforms)
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
