//! Colours of BMP files with 16 bits for a pixel.

use image::RgbImage;

/// From the levels of such a file as `image` rounds them to those that Pillow makes of the same bits, which it cuts
/// off (`ImagingUnpackBGR15` and `ImagingUnpackBGR16` in its `Unpack.c`). Other files stay as they are.
pub(super) fn cut_off(file: &[u8], image: &mut RgbImage) {
    let Some(bits) = bits(file) else { return };
    let most = bits.map(|bits| (1_u16 << bits) - 1);
    for pixel in image.pixels_mut() {
        for (level, most) in pixel.0.iter_mut().zip(most) {
            let value = (u16::from(*level) * most + 127) / 255;
            *level = (value * 255 / most) as u8;
        }
    }
}

/// Bits of red, green and blue, where a pixel has 16 in all.
fn bits(file: &[u8]) -> Option<[u16; 3]> {
    // `BITMAPINFOHEADER` begins at byte 14, and the masks of `BI_BITFIELDS` are at byte 54.
    let number = |at: usize| Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?));
    const BITFIELDS: u32 = 3;
    if number(28)? as u16 != 16 {
        return None;
    }
    let six_for_green = number(30)? == BITFIELDS && number(58)? == 0x07e0;
    Some(if six_for_green { [5, 6, 5] } else { [5, 5, 5] })
}
