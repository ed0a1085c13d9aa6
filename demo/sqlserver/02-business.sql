-- A day of business.
USE shop;
GO
UPDATE dbo.orders SET status = N'paid' WHERE id <= 300;
GO
UPDATE dbo.orders SET note = NULL WHERE id BETWEEN 400 AND 500;
GO
DELETE FROM dbo.orders WHERE id BETWEEN 4900 AND 5000;
GO
INSERT INTO dbo.orders (id, customer_id, status, amount, ordered_at, note)
SELECT id + 10000, customer_id, N'open', amount, SYSUTCDATETIME(), note FROM dbo.orders WHERE id BETWEEN 1000 AND 1199;
GO
UPDATE dbo.customers SET name = UPPER(name) WHERE id <= 20;
GO
UPDATE dbo.customers SET credit = credit + 0.0001 WHERE id BETWEEN 21 AND 30;
GO
