//! The demo, as a newcomer runs it.

use std::process::{Command, Output};

fn demo(dir: &std::path::Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_frazil")).arg("demo").arg("--dir").arg(dir).output().unwrap()
}

#[test]
fn the_demo_ends_with_three_places_that_agree_and_can_be_run_again() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("a place");
    for _ in 0..2 {
        let ran = demo(&place);
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{text}\n{}", String::from_utf8_lossy(&ran.stderr));
        assert!(text.contains("✓ 151,990 rows, the same in shop, lake and warehouse"), "{text}");
        assert!(text.contains("customers        0 inserted,   200 updated,   0 deleted"), "{text}");
        assert!(text.contains("orders         300 inserted,   500 updated,   0 deleted"), "{text}");
        assert!(text.contains("order_items    700 inserted,     0 updated,   0 deleted"), "{text}");
        assert!(text.contains("products        25 differ,  10 deleted"), "{text}");
    }
    // Its configuration is one to go on from.
    let config = place.join("frazil.yaml");
    let again =
        Command::new(env!("CARGO_BIN_EXE_frazil")).arg("run").arg("--config").arg(&config).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn the_demo_touches_no_directory_of_others() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("thesis.txt"), "mine").unwrap();
    let ran = demo(dir.path());
    assert_eq!(ran.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&ran.stderr)
            .contains("the directory is not empty and not of an earlier demo")
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}
