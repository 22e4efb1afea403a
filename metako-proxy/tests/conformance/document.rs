//! docs/compatibility.md names every case and every difference.

use crate::cases;
use crate::differences;

#[test]
fn every_difference_is_of_a_case() {
    let all = cases::all();
    for listed in differences::cases() {
        assert!(all.iter().any(|case| case.name == listed), "no case `{listed}`");
    }
    for (index, case) in all.iter().enumerate() {
        assert!(all[..index].iter().all(|other| other.name != case.name), "two cases `{}`", case.name);
    }
}
