//! Numbers are exact decimals: what an ERP writes as `0.10` is a tenth, and no binary fraction near it.

use std::{cmp::Ordering, fmt};

/// The most digits that are calculated with.
const MAX_DIGITS: u32 = 34;
/// Digits after the point of a quotient, as far as there is room.
const QUOTIENT_DIGITS: [u32; 3] = [18, 12, 6];

/// `mantissa / 10^scale`, of at most 34 digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decimal {
    mantissa: i128,
    scale: u32,
}

/// A number as written, of any size; only compared.
#[derive(Debug, PartialEq, Eq)]
struct Wide {
    is_negative: bool,
    /// Without leading and trailing zeros; empty for 0.
    digits: String,
    /// Where the first digit stands: 1 for units.
    magnitude: i64,
}

impl Decimal {
    /// Reads a number as JSON or CEL write it; `None` when it has too many digits, or is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (number, exponent) = match text.split_once(['e', 'E']) {
            Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
            None => (text, 0),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let fraction = fraction.trim_end_matches('0');
        let mut mantissa: i128 = 0;
        let (is_negative, whole) = match whole.strip_prefix('-') {
            Some(whole) => (true, whole),
            None => (false, whole),
        };
        for byte in whole.bytes().chain(fraction.bytes()) {
            let digit = byte.is_ascii_digit().then(|| i128::from(byte - b'0'))?;
            mantissa = mantissa.checked_mul(10)?.checked_add(digit)?;
        }
        if is_negative {
            mantissa = -mantissa;
        }
        if mantissa == 0 {
            return Some(Self::from(0));
        }
        let scale = i32::try_from(fraction.len()).ok()?.checked_sub(exponent)?;
        match u32::try_from(scale) {
            Ok(scale) => Self::new(mantissa, scale),
            Err(_) => Self::new(mantissa.checked_mul(power(scale.unsigned_abs())?)?, 0),
        }
    }

    /// Without zeros at the end of the fraction; `None` when it has too many digits.
    fn new(mut mantissa: i128, mut scale: u32) -> Option<Self> {
        while scale > 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            scale -= 1;
        }
        let fits =
            mantissa.unsigned_abs() < power(MAX_DIGITS)?.unsigned_abs() && scale <= MAX_DIGITS;
        fits.then_some(Self { mantissa, scale })
    }

    pub(super) fn add(self, other: Self) -> Option<Self> {
        let (left, right, scale) = self.aligned(other)?;
        Self::new(left.checked_add(right)?, scale)
    }

    pub(super) fn subtract(self, other: Self) -> Option<Self> {
        self.add(other.negate())
    }

    pub(super) fn multiply(self, other: Self) -> Option<Self> {
        let mantissa = self.mantissa.checked_mul(other.mantissa)?;
        Self::new(mantissa, self.scale + other.scale)
    }

    /// Rounded half away from zero after at most 18 digits; `None` for a division by zero too.
    pub(super) fn divide(self, other: Self) -> Option<Self> {
        QUOTIENT_DIGITS.into_iter().find_map(|digits| {
            let dividend = self.mantissa.checked_mul(power(digits + other.scale)?)?;
            let divisor = other.mantissa.checked_mul(power(self.scale)?)?;
            let rest = dividend.checked_rem(divisor)?;
            let quotient = dividend.checked_div(divisor)?;
            let is_half = rest.unsigned_abs() >= divisor.unsigned_abs() - rest.unsigned_abs();
            let sign = dividend.signum() * divisor.signum();
            Self::new(quotient + if is_half { sign } else { 0 }, digits)
        })
    }

    /// What a division to a whole number leaves; `None` for a division by zero too.
    pub(super) fn remainder(self, other: Self) -> Option<Self> {
        let (left, right, scale) = self.aligned(other)?;
        Self::new(left.checked_rem(right)?, scale)
    }

    pub(super) fn negate(self) -> Self {
        Self {
            mantissa: -self.mantissa,
            ..self
        }
    }

    pub(super) fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    /// The whole part.
    pub(super) fn truncate(self) -> Option<i64> {
        i64::try_from(self.mantissa / power(self.scale)?).ok()
    }

    /// The number, if it is a whole one.
    pub(super) fn whole(self) -> Option<i64> {
        if self.scale == 0 {
            self.truncate()
        } else {
            None
        }
    }

    fn aligned(self, other: Self) -> Option<(i128, i128, u32)> {
        let scale = self.scale.max(other.scale);
        let left = self.mantissa.checked_mul(power(scale - self.scale)?)?;
        let right = other.mantissa.checked_mul(power(scale - other.scale)?)?;
        Some((left, right, scale))
    }
}

impl From<i64> for Decimal {
    fn from(whole: i64) -> Self {
        Self {
            mantissa: whole.into(),
            scale: 0,
        }
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa < 0 {
            f.write_str("-")?;
        }
        let scale = self.scale as usize;
        let digits = format!(
            "{:0>width$}",
            self.mantissa.unsigned_abs(),
            width = scale + 1
        );
        let (whole, fraction) = digits
            .split_at_checked(digits.len() - scale)
            .unwrap_or((&digits, ""));
        f.write_str(whole)?;
        if fraction.is_empty() {
            Ok(())
        } else {
            write!(f, ".{fraction}")
        }
    }
}

/// Compares two numbers as written, exactly, whatever their size.
pub(super) fn compare(left: &str, right: &str) -> Ordering {
    if let (Some(left), Some(right)) = (Decimal::parse(left), Decimal::parse(right))
        && let Some((left, right, _)) = left.aligned(right)
    {
        return left.cmp(&right);
    }
    wide(left).compare(&wide(right))
}

impl Wide {
    fn compare(&self, other: &Self) -> Ordering {
        let sign = |one: &Self| match (one.digits.is_empty(), one.is_negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let by_sign = sign(self).cmp(&sign(other));
        let by_size = self
            .magnitude
            .cmp(&other.magnitude)
            .then_with(|| self.digits.cmp(&other.digits));
        match sign(self) {
            _ if by_sign.is_ne() => by_sign,
            0 => Ordering::Equal,
            1 => by_size,
            _ => by_size.reverse(),
        }
    }
}

fn wide(text: &str) -> Wide {
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let is_small = exponent.starts_with('-');
    // An exponent of more digits than these is beyond all others, on its side.
    let limit = i64::from(i32::MAX);
    let exponent = exponent
        .parse::<i64>()
        .map_or(if is_small { -limit } else { limit }, |exponent| {
            exponent.clamp(-limit, limit)
        });
    let is_negative = number.starts_with('-');
    let number = number.trim_start_matches('-');
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all = format!("{whole}{fraction}");
    let digits = all.trim_start_matches('0');
    let zeros = all.len() - digits.len();
    let place = |count: usize| i64::try_from(count).unwrap_or(limit);
    Wide {
        is_negative,
        magnitude: place(whole.len()) - place(zeros) + exponent,
        digits: digits.trim_end_matches('0').to_owned(),
    }
}

fn power(exponent: u32) -> Option<i128> {
    10_i128.checked_pow(exponent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_by_value_whatever_their_form_and_size() {
        let ascending = [
            "-1e400",
            "-123456789012345678901234567890.5",
            "-1.5",
            "-1",
            "0",
            "1e-400",
            "0.1",
            "1",
            "1.00000000000000000000000000000000000000001",
            "1000",
            "1000.5",
            "1001",
            "1e9",
            "9007199254740992",
            "9007199254740993",
            "99999999999999999999999999999999999999",
            "1e40",
            "1e400",
            "1e99999999999999999999",
        ];
        for (index, left) in ascending.iter().enumerate() {
            for (other, right) in ascending.iter().enumerate() {
                assert_eq!(compare(left, right), index.cmp(&other), "{left} {right}");
            }
        }
        for (left, right) in [
            ("1000", "1e3"),
            ("1000", "1000.00"),
            ("-0", "0.0e5"),
            ("12e40", "1.2E41"),
        ] {
            assert_eq!(compare(left, right), Ordering::Equal, "{left} {right}");
        }
    }

    #[test]
    fn sums_are_exact_and_quotients_rounded() {
        let number = |text| Decimal::parse(text).unwrap();
        let shown = |result: Option<Decimal>| result.map(|number| number.to_string());
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(shown(number("0.1").add(number("0.2"))), some("0.3"));
        assert_eq!(
            shown(number("18450.00").multiply(number("1.19"))),
            some("21955.5")
        );
        assert_eq!(shown(number("7").divide(number("2"))), some("3.5"));
        assert_eq!(
            shown(number("-2").divide(number("3"))),
            some("-0.666666666666666667")
        );
        assert_eq!(shown(number("1").subtract(number("1.05"))), some("-0.05"));
        assert_eq!(shown(number("7.5").remainder(number("2"))), some("1.5"));
        assert_eq!(shown(number("1").divide(number("0"))), None);
        assert_eq!(shown(number("1").remainder(number("0"))), None);
        let large = number("9999999999999999999999999999999999");
        assert_eq!(shown(large.add(number("1"))), None);
        assert_eq!(shown(large.multiply(large)), None);
        assert_eq!(Decimal::parse("1e35"), None);
        assert_eq!(Decimal::parse("1e-2147483648"), None);
    }
}
