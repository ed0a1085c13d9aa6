//! What `frazil setup` would switch on in SQL Server, and what `frazil teardown` can only suggest: nobody knows
//! who else uses it.

use super::choose::enable;
use super::discover::Relation;
use crate::source::{Arrangement, ChangeDetection, Goal};

/// What is to be done, and what need not be.
pub(super) fn arrange(
    relation: &Relation,
    change: ChangeDetection,
    snapshot: bool,
    goal: Goal,
) -> Arrangement {
    let table = relation.quoted();
    let on = match change {
        ChangeDetection::Tracking => relation.tracked,
        ChangeDetection::Log => relation.captured,
        change => {
            return Arrangement::nothing(format!("`change: {}` needs nothing of ours here", change.name()));
        }
    };
    let mut arrangement = Arrangement::default();
    let name = if change == ChangeDetection::Log { "Change Data Capture" } else { "Change Tracking" };
    if let Goal::Teardown { .. } = goal {
        if on {
            arrangement.notes.push(format!("{name} stays on: others may use it"));
            arrangement.suggestions.push(match change {
                ChangeDetection::Log => "EXEC sys.sp_cdc_disable_table @source_schema = …, @source_name = …, @capture_instance = N'all'".to_owned(),
                _ => format!("ALTER TABLE {table} DISABLE CHANGE_TRACKING"),
            });
        }
        return arrangement;
    }
    let statements = &mut arrangement.statements;
    if !snapshot {
        statements.push("ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON".to_owned());
    }
    if on {
        arrangement.notes.push(format!("{name} is on for the table"));
        return arrangement;
    }
    match change {
        ChangeDetection::Log => {
            statements.push(
                "IF NOT EXISTS (SELECT 1 FROM sys.databases WHERE database_id = DB_ID() AND is_cdc_enabled = 1) \
                 EXEC sys.sp_cdc_enable_db"
                    .to_owned(),
            );
            statements.push(enable(relation, None));
        }
        _ => {
            statements.push(
                "IF NOT EXISTS (SELECT 1 FROM sys.change_tracking_databases WHERE database_id = DB_ID()) \
                 ALTER DATABASE CURRENT SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON)"
                    .to_owned(),
            );
            statements.push(format!("ALTER TABLE {table} ENABLE CHANGE_TRACKING"));
        }
    }
    arrangement
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::testing::relation;
    use super::*;

    #[test]
    fn what_is_off_is_switched_on() {
        let arranged = |change, on, snapshot, goal| {
            let mut relation = relation("id int 4 !\nkey id");
            (relation.tracked, relation.captured) = (on, on);
            let arrangement = arrange(&relation, change, snapshot, goal);
            let all = arrangement.statements.iter().chain(&arrangement.notes).chain(&arrangement.suggestions);
            all.map(|line| format!("{line}\n")).collect::<String>()
        };
        let (tracking, log) = (ChangeDetection::Tracking, ChangeDetection::Log);
        expect![[r#"
            ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON
            IF NOT EXISTS (SELECT 1 FROM sys.change_tracking_databases WHERE database_id = DB_ID()) ALTER DATABASE CURRENT SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON)
            ALTER TABLE [dbo].[t] ENABLE CHANGE_TRACKING
        "#]]
        .assert_eq(&arranged(tracking, false, false, Goal::Setup));
        expect![[r#"
            IF NOT EXISTS (SELECT 1 FROM sys.databases WHERE database_id = DB_ID() AND is_cdc_enabled = 1) EXEC sys.sp_cdc_enable_db
            EXEC sys.sp_cdc_enable_table @source_schema = N'dbo', @source_name = N't', @role_name = NULL
        "#]]
        .assert_eq(&arranged(log, false, true, Goal::Setup));
        expect![[r#"
            Change Data Capture is on for the table
        "#]]
        .assert_eq(&arranged(log, true, true, Goal::Setup));
        expect![[r#"
            Change Tracking stays on: others may use it
            ALTER TABLE [dbo].[t] DISABLE CHANGE_TRACKING
        "#]]
        .assert_eq(&arranged(tracking, true, true, Goal::Teardown { force: false }));
        let needs_nothing = arranged(ChangeDetection::Full, true, false, Goal::Setup);
        assert!(needs_nothing.contains("needs nothing"), "{needs_nothing}");
    }
}
