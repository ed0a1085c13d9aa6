update orders set status = 'paid', updated_at = now()
  where id in (select id from orders where status = 'open' order by id limit 500);
insert into orders
  select i, i % 10000 + 1, 'open', i / 100.0, null, now() from generate_series(40001::bigint, 40300) i;
insert into order_items (order_id, product, quantity, price)
  select 40001 + i % 300, 'P-' || lpad((i % 900 + 1)::text, 5, '0'), i % 5 + 1, 9.99 from generate_series(0::bigint, 699) i;
update customers set balance = balance + 10, updated_at = now() where id % 50 = 7;
update products set price = round(price * 1.5, 2) where code <= 'P-00025';
delete from products where code > 'P-00990';
