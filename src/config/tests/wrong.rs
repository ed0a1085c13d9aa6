//! What is wrong with a file, said with its place and what was meant, and never a secret with it.

use super::*;

#[test]
fn what_is_wrong_says_where_and_what_was_meant() {
    for (text, expected) in [
        (
            "conections: {}\n",
            expect![[r#"
            config: unknown key `conections` (file: frazil.yaml:1:1)
              hint: did you mean `connections`?
        "#]],
        ),
        (
            "streams:\n  public.orders:\n    curser: updated_at\n",
            expect![[r#"
            config: unknown key `curser` (key: streams.public.orders, file: frazil.yaml:3:5)
              hint: did you mean `cursor`?
        "#]],
        ),
        (
            "streams:\n  public.orders: { mode: mrege }\n",
            expect![[r#"
            config: unknown mode `mrege` (key: streams.public.orders.mode, file: frazil.yaml:2:26)
              hint: did you mean `merge`?
        "#]],
        ),
        (
            "streams:\n  public.orders: { mode: snapshot }\n",
            expect![[r#"
            config: `mode: snapshot` is not in this build yet (key: streams.public.orders.mode, file: frazil.yaml:2:26)
              hint: this build knows `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
        "#]],
        ),
        (
            "streams:\n  public.orders: { deletes: sfot }\n",
            expect![[r#"
            config: unknown value `sfot` (key: streams.public.orders.deletes, file: frazil.yaml:2:29)
              hint: did you mean `soft`?
        "#]],
        ),
        (
            "streams:\n  public.orders: { lag: 10 parsecs }\n",
            expect![[r#"
            config: not a length of time (key: streams.public.orders.lag, file: frazil.yaml:2:25)
              hint: write it like `90s`, `10m` or `1h30m`
        "#]],
        ),
        (
            "streams:\n  public.orders: { columns: { a: b } }\n",
            expect![[r#"
            config: expected a name or a list of names, found a map (key: streams.public.orders.columns, file: frazil.yaml:2:29)
        "#]],
        ),
        (
            "streams:\n  public.orders: [a]\n",
            expect![[r#"
                config: expected a map of settings, found a list (key: streams.public.orders, file: frazil.yaml:2:18)
            "#]],
        ),
        (
            "streams: [public.orders]\n",
            expect![[r#"
            config: expected a map of streams: `public.orders: {}`, found a list (key: streams, file: frazil.yaml:1:10)
        "#]],
        ),
        (
            "defaults: { source: a }\ndefaults: { source: b }\n",
            expect![[r#"
            config: the key `defaults` stands here twice (file: frazil.yaml:2:1)
              hint: keep one of the two; settings of both do not add up
        "#]],
        ),
        (
            "streams:\n  a.b: { cursor: x, update_key: y }\n",
            expect![[r#"
            config: `cursor` is said twice (key: streams.a.b, file: frazil.yaml:2:8)
              hint: one of the two may be written as an alias
        "#]],
        ),
        (
            "streams:\n\ta.b: {}\n",
            expect![[r#"
            config: not valid YAML: tabs disallowed within this context (block indentation) (file: frazil.yaml:2:2)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "streams: { a.b: {\n",
            expect![[r#"
            config: not valid YAML: unclosed bracket '{' (file: frazil.yaml:1:17)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "streams: { a.b: *nowhere }\n",
            expect![[r#"
                config: `*` and a name refer to a YAML anchor that is not there (file: frazil.yaml:1:17)
                  hint: a pattern that begins with `*` needs quotes: `'*_log': {}`
            "#]],
        ),
        (
            "a: 1\n---\nb: 2\n",
            expect![[r#"
            config: the file holds more than one YAML document (file: frazil.yaml:3:1)
              hint: remove `---`
        "#]],
        ),
        (
            "just text\n",
            expect![[r#"
                config: expected a map with `connections`, `lake`, `maintenance`, `defaults`, `streams`, `groups` and `shared`, found text (file: frazil.yaml:1:1)
            "#]],
        ),
        (
            "",
            expect![[r#"
            config: the configuration has no streams (file: frazil.yaml)
              hint: add tables under `streams`: `public.orders: {}`, or a pattern: `public.*: {}`
        "#]],
        ),
        (
            "streams:\n  public.orders: {}\n",
            expect![[r#"
            config: the stream has no source (stream: public.orders, file: frazil.yaml:2:18)
              hint: set `source` in it or in `defaults`
        "#]],
        ),
        (
            "streams:\n  public.orders: { source: nowhere }\n",
            expect![[r#"
                config: unknown connection `nowhere` (stream: public.orders, file: frazil.yaml:2:28)
                  hint: name it under `connections`
            "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\ndefaults:\n  source: shpo\nstreams:\n  public.orders: {}\n",
            expect![[r#"
            config: unknown connection `shpo` (stream: public.orders, file: frazil.yaml:3:11)
              hint: did you mean `shop`?
        "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\nstreams:\n  a.b.: { source: shop }\n",
            expect![[r#"
            a.b.: shop (sqlite://a) -> a.b.
        "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\nstreams:\n  'a.[b': { source: shop }\n",
            expect![[r#"
            config: `a.[b` is not a pattern: unclosed character class; missing ']' (stream: a.[b, file: frazil.yaml:3:11)
              hint: `*` is any text, `?` any character, `[ab]` one of these, `{a,b}` either
        "#]],
        ),
        (
            "connections: { shop: 'sqlite:a' }\nstreams:\n  a.b: { source: shop, target: 'shop.{steam_table}' }\n",
            expect![[r#"
                config: unknown variable `steam_table` (stream: a.b, file: frazil.yaml:3:32)
                  hint: did you mean `stream_table`?
            "#]],
        ),
        (
            "lake: { catalog: filesystem }\n",
            expect![[r#"
            config: the key `warehouse` is missing (key: lake, file: frazil.yaml:1:7)
        "#]],
        ),
        (
            "lake: { warehouse: '' }\n",
            expect![[r#"
            config: `warehouse` is empty
              hint: give a directory or a URL: `./lake`, `s3://bucket/prefix`
        "#]],
        ),
    ] {
        eprintln!("{text}");
        check(text, expected);
    }
}

#[test]
fn secrets_stay_secret_whatever_is_wrong_around_them() {
    for (text, expected) in [
        (
            "connections:\n  shop: postgres://sync:${PASWORD}@db/shop\n",
            expect![[r#"
            config: variable `PASWORD` is not set (key: connections.shop, file: frazil.yaml:2:9)
              hint: set it in the environment or in `.env`, or give a default: `${PASWORD:-…}`
        "#]],
        ),
        (
            "connections:\n  shop: postgres://sync:hunter2@:99999/shop\n",
            expect![[r#"
            config: connection `shop` is not a URL: invalid port number (file: frazil.yaml:2:9)
              hint: write `postgres://user:${PASSWORD}@host/database` or `sqlite:///path/to/file.db`; percent-encode special characters in the password
        "#]],
        ),
        (
            "connections:\n  shop: postgres//sync:hunter2@db/shop\n",
            expect![[r#"
            config: connection `shop` is not a URL: relative URL without a base (file: frazil.yaml:2:9)
              hint: write `postgres://user:${PASSWORD}@host/database` or `sqlite:///path/to/file.db`; percent-encode special characters in the password
        "#]],
        ),
        (
            "connections:\n  shop: [ postgres://sync:hunter2@db/shop ]\n",
            expect![[r#"
            config: expected a URL, or a map with `url`, found a list (key: connections.shop, file: frazil.yaml:2:9)
        "#]],
        ),
        (
            "connections:\n  shop: { url: 'postgres://db', pasword: hunter2 }\n",
            expect![[r#"
            config: unknown key `pasword` (key: connections.shop, file: frazil.yaml:2:33)
              hint: did you mean `password`?
        "#]],
        ),
        (
            "connections:\n  postgres://sync:hunter2@db/shop: {}\n",
            expect![[r#"
            config: the key `url` is missing (key: connections.…, file: frazil.yaml:2:36)
        "#]],
        ),
        (
            "connections:\n  postgres://sync:hunter2@db/shop\n",
            expect![[r#"
            config: expected a map, found text (key: connections, file: frazil.yaml:2:3)
        "#]],
        ),
        (
            "connections:\n  shop: {'postgres://sync:hunter2@db/shop': 1}\n",
            expect![[r#"
                config: unknown key `…` (key: connections.shop, file: frazil.yaml:2:10)
                  hint: known: `url`, `password`, `options`, `limits`
            "#]],
        ),
        (
            "connections:\n  shop: 'postgres://sync:hunter2@db/shop\n",
            expect![[r#"
            config: not valid YAML: invalid indentation in multiline quoted scalar (file: frazil.yaml:3:1)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "connections:\n  shop: {url: 'sqlite:a', password: hunter2}\n",
            expect![[r#"
            config: this address has no place for a password (connection: shop, file: frazil.yaml:2:9)
        "#]],
        ),
        (
            "connections:\n  a: postgres://sync:hunter2@db/shop\n   b: c\n",
            expect![[r#"
            config: not valid YAML: mapping values are not allowed in this context (file: frazil.yaml:3:5)
              hint: check indentation and quotes; text with `: `, `#` or `{` needs quotes
        "#]],
        ),
        (
            "defaults: { mode: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.mode, file: frazil.yaml:1:19)
              hint: known: `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
        "#]],
        ),
        (
            "defaults: { deletes: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.deletes, file: frazil.yaml:1:22)
              hint: known: `hard`, `soft`, `ignore`
        "#]],
        ),
        (
            "defaults: { lag: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.lag, file: frazil.yaml:1:18)
              hint: write it like `90s`, `10m` or `1h30m`
        "#]],
        ),
        (
            "defaults: { values: \"${PASSWORD}\" }\n",
            expect![[r#"
            config: the variable holds something that does not fit here (key: defaults.values, file: frazil.yaml:1:21)
        "#]],
        ),
        (
            "defaults: { mode: 'postgres://sync:hunter2@db/shop' }\n",
            expect![[r#"
            config: unknown mode `…` (key: defaults.mode, file: frazil.yaml:1:19)
              hint: known: `merge`, `append`, `replace`, `scd2`, `upsert`, `incremental`, `full-refresh`
        "#]],
        ),
        (
            "defaults: { source: 'mysql:hunter2@db' }\nstreams: { a.b: {} }\n",
            expect![[r#"
                config: unknown connection `…` (stream: a.b, file: frazil.yaml:1:21)
                  hint: name it under `connections`
            "#]],
        ),
        (
            "lake: { warehouse: s3://a, options: { s3.secret-access-key: [hunter2] } }\n",
            expect![[r#"
            config: expected a string, found a list (key: lake.options.s3.secret-access-key, file: frazil.yaml:1:61)
        "#]],
        ),
        (
            "lake: { warehouse: \"${PASSWORD\" }\n",
            expect![[r#"
            config: `${` without a name and `}` (key: lake.warehouse, file: frazil.yaml:1:20)
              hint: write `${NAME}` or `${NAME:-default}`, and `$${` for the characters themselves
        "#]],
        ),
    ] {
        eprintln!("{text}");
        check(text, expected);
    }
}
