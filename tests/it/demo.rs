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

/// The scripts of `demo/sqlserver/` cannot be run here; that they are T-SQL, an independent parser says.
/// What it does not know is listed, so that a slip of the pen is no new form.
#[test]
fn the_scripts_for_sqlserver_are_t_sql() {
    use datafusion::sql::sqlparser::dialect::MsSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;

    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/sqlserver");
    let unknown = ["ALTER DATABASE shop SET ", "ALTER TABLE dbo.", "IF DB_ID(", "IF EXISTS (", "USE shop"];
    let mut parsed = 0;
    for name in ["01-shop.sql", "02-business.sql", "03-verify.sql"] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        assert!(text.ends_with("\nGO\n"), "{name}: the last batch is not sent");
        for batch in text.split("\nGO\n").map(str::trim).filter(|batch| !batch.is_empty()) {
            let code: Vec<&str> = batch.lines().filter(|line| !line.starts_with("--")).collect();
            let code = code.join("\n");
            if unknown.iter().any(|form| code.starts_with(form)) {
                continue;
            }
            if let Err(error) = Parser::parse_sql(&MsSqlDialect {}, &code) {
                panic!("{name}: {error}\n{code}");
            }
            parsed += 1;
        }
    }
    assert!(parsed > 8, "{parsed} batches were parsed");
}
