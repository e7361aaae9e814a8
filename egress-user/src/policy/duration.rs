//! Times as people write them: `60s`, `10m`, `1h`, `2d`, `500ms`, `1h30m`.

use std::time::Duration;

use super::name::{ItemError, excerpt};

/// Longest time that a policy may say: a year.
const MOST: Duration = Duration::from_secs(365 * 24 * 3600);

/// Reads a time. A number without a unit is an error, since it is read differently everywhere; `0` is not.
pub fn parse(text: &str) -> Result<Duration, ItemError> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(ItemError::new("an empty time", "write one like `60s`, `10m` or `1h`"));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ItemError::new(
            format!("`{}` has no unit", excerpt(text)),
            format!("write `{}s` or `{}m`", excerpt(text), excerpt(text)),
        ));
    }
    let duration = humantime::parse_duration(text).map_err(|_| {
        ItemError::new(format!("`{}` is not a time", excerpt(text)), "write one like `60s`, `10m`, `1h` or `0s`")
    })?;
    if duration > MOST {
        return Err(ItemError::new(format!("`{}` is too long", excerpt(text)), "write at most `365d`"));
    }
    Ok(duration)
}
