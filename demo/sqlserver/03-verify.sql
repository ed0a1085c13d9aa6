-- The warehouse has exactly the shop's rows, to the last bit of each text.
SELECT 'orders' AS table_name,
  (SELECT COUNT(*) FROM shop.dbo.orders AS s WHERE NOT EXISTS (SELECT 1 FROM dwh.dbo.orders AS t WHERE t.id = s.id)) AS missing,
  (SELECT COUNT(*) FROM dwh.dbo.orders AS t WHERE NOT EXISTS (SELECT 1 FROM shop.dbo.orders AS s WHERE s.id = t.id)) AS extra,
  (SELECT COUNT(*) FROM shop.dbo.orders AS s INNER JOIN dwh.dbo.orders AS t ON t.id = s.id WHERE EXISTS (
    SELECT s.customer_id, s.status COLLATE Latin1_General_100_BIN2, s.amount, s.ordered_at, s.note COLLATE Latin1_General_100_BIN2
    EXCEPT SELECT t.customer_id, t.status COLLATE Latin1_General_100_BIN2, t.amount, t.ordered_at, t.note COLLATE Latin1_General_100_BIN2)) AS different;
GO
SELECT 'customers' AS table_name,
  (SELECT COUNT(*) FROM shop.dbo.customers AS s WHERE NOT EXISTS (SELECT 1 FROM dwh.dbo.customers AS t WHERE t.id = s.id)) AS missing,
  (SELECT COUNT(*) FROM dwh.dbo.customers AS t WHERE NOT EXISTS (SELECT 1 FROM shop.dbo.customers AS s WHERE s.id = t.id)) AS extra,
  (SELECT COUNT(*) FROM shop.dbo.customers AS s INNER JOIN dwh.dbo.customers AS t ON t.id = s.id WHERE EXISTS (
    SELECT s.name COLLATE Latin1_General_100_BIN2, s.email COLLATE Latin1_General_100_BIN2, s.credit
    EXCEPT SELECT t.name COLLATE Latin1_General_100_BIN2, t.email COLLATE Latin1_General_100_BIN2, t.credit)) AS different;
GO
IF EXISTS (SELECT id FROM shop.dbo.orders EXCEPT SELECT id FROM dwh.dbo.orders)
  OR EXISTS (SELECT id FROM dwh.dbo.orders EXCEPT SELECT id FROM shop.dbo.orders)
  OR EXISTS (SELECT id, credit FROM shop.dbo.customers EXCEPT SELECT id, credit FROM dwh.dbo.customers)
  THROW 50000, 'shop and warehouse differ', 1;
GO
