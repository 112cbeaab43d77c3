//! From levels to the values that the model takes.

use std::mem::MaybeUninit;

use super::ImageSettings;

/// Values that are computed together: a multiple of three, and of what registers hold.
const LANES: usize = 24;

/// `(level - mean) / std * factor`, in the float32 arithmetic of the reference, which folds the
/// rescale factor into mean and standard deviation. Where one of its steps is not asked for, the
/// numbers here are such that it changes nothing.
pub(super) struct Normalizer {
    /// Of red, green and blue, over and over.
    mean: [f32; LANES],
    std: [f32; LANES],
    factor: f32,
}

impl Normalizer {
    pub(super) fn new(settings: &ImageSettings) -> Self {
        let fold = if settings.do_rescale { (1.0 / settings.rescale_factor) as f32 } else { 1.0 };
        let by_channel = |values: [f32; 3]| std::array::from_fn(|i| values[i % 3] * fold);
        match (settings.do_normalize, settings.do_rescale) {
            (true, _) => Normalizer {
                mean: by_channel(settings.image_mean),
                std: by_channel(settings.image_std),
                factor: 1.0,
            },
            (false, rescale) => Normalizer {
                mean: [0.0; LANES],
                std: [1.0; LANES],
                factor: if rescale { settings.rescale_factor as f32 } else { 1.0 },
            },
        }
    }
}

impl Normalizer {
    /// The level that has this value in a channel.
    pub(super) fn level(&self, value: f32, channel: usize) -> u8 {
        (value / self.factor * self.std[channel] + self.mean[channel]).round() as u8
    }
}

/// Writes the values of a run of pixels.
pub(super) fn normalize(levels: &[u8], normalizer: &Normalizer, values: &mut [MaybeUninit<f32>]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2.
        return unsafe { normalize_avx2(levels, normalizer, values) };
    }
    normalize_plain(levels, normalizer, values);
}

/// The same loop, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn normalize_avx2(levels: &[u8], normalizer: &Normalizer, values: &mut [MaybeUninit<f32>]) {
    normalize_plain(levels, normalizer, values);
}

#[inline(always)]
fn normalize_plain(levels: &[u8], normalizer: &Normalizer, values: &mut [MaybeUninit<f32>]) {
    let Normalizer { mean, std, factor } = normalizer;
    assert_eq!(levels.len(), values.len());
    for (levels, values) in levels.chunks(LANES).zip(values.chunks_mut(LANES)) {
        let numbers = mean.iter().zip(std);
        for ((value, &level), (mean, std)) in values.iter_mut().zip(levels).zip(numbers) {
            value.write((f32::from(level) - mean) / std * factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_found_again() {
        let default = ImageSettings::default();
        let (image_mean, image_std) = ([0.1, 0.5, 0.9], [0.2, 0.3, 2.0]);
        for settings in [
            default.clone(),
            ImageSettings { image_mean, image_std, ..default.clone() },
            ImageSettings { do_normalize: false, ..default.clone() },
            ImageSettings { do_rescale: false, image_mean, image_std, ..default.clone() },
            ImageSettings { do_rescale: false, do_normalize: false, ..default.clone() },
            ImageSettings { rescale_factor: 1.0 / 127.0, ..default },
        ] {
            let normalizer = Normalizer::new(&settings);
            let levels: Vec<u8> = (0..=255).flat_map(|level| [level; 3]).collect();
            let mut values = vec![MaybeUninit::new(0.0); levels.len()];
            normalize(&levels, &normalizer, &mut values);
            for (i, (value, level)) in values.into_iter().zip(levels).enumerate() {
                // SAFETY: all were written when they were made.
                let value = unsafe { value.assume_init() };
                assert_eq!(normalizer.level(value, i % 3), level, "{settings:?}");
            }
        }
    }
}
