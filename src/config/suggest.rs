//! "Did you mean": the nearest known word, if one is near.

/// Below this similarity (Jaro-Winkler, 0 to 1) a guess confuses more than it helps.
const NEAR: f64 = 0.8;

/// The candidate that a person most likely meant.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&word, &candidate.to_lowercase()), candidate))
        .filter(|(similarity, _)| *similarity >= NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// `did you mean …?`
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(word, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

/// `did you mean …?`, else the list of what is known.
pub(super) fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    did_you_mean(word, candidates.clone()).or_else(|| {
        let known: Vec<_> = candidates.into_iter().map(|candidate| format!("`{candidate}`")).collect();
        (!known.is_empty()).then(|| format!("known: {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_nonsense_finds_the_list() {
        assert_eq!(nearest("curser", ["cursor", "columns"]), Some("cursor"));
        assert_eq!(nearest("Primary_Keys", ["primary_key", "portion"]), Some("primary_key"));
        assert_eq!(nearest("zzz", ["cursor"]), None);
        assert_eq!(hint("zzz", ["a", "b"]).as_deref(), Some("known: `a`, `b`"));
    }
}
