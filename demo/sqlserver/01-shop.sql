-- A shop with changes tracked, and an empty warehouse.
IF DB_ID(N'shop') IS NULL CREATE DATABASE shop;
GO
IF DB_ID(N'dwh') IS NULL CREATE DATABASE dwh;
GO
ALTER DATABASE shop SET ALLOW_SNAPSHOT_ISOLATION ON;
GO
ALTER DATABASE shop SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 7 DAYS, AUTO_CLEANUP = ON);
GO
USE shop;
GO
CREATE TABLE dbo.customers (
  id int NOT NULL PRIMARY KEY,
  name nvarchar(100) NOT NULL,
  email varchar(200) NULL,
  credit money NULL
);
GO
CREATE TABLE dbo.orders (
  id bigint NOT NULL PRIMARY KEY,
  customer_id int NOT NULL,
  status nvarchar(20) NOT NULL,
  amount decimal(12, 2) NOT NULL,
  ordered_at datetime2(7) NOT NULL,
  note nvarchar(max) NULL
);
GO
ALTER TABLE dbo.customers ENABLE CHANGE_TRACKING;
GO
ALTER TABLE dbo.orders ENABLE CHANGE_TRACKING;
GO
INSERT INTO dbo.customers (id, name, email, credit)
SELECT n, CONCAT(N'Customer ', n), CONCAT('c', n, '@example.com'), n / 3.0
FROM (SELECT TOP (500) ROW_NUMBER() OVER (ORDER BY a.object_id) AS n FROM sys.all_objects AS a CROSS JOIN sys.all_objects AS b) AS numbers;
GO
INSERT INTO dbo.orders (id, customer_id, status, amount, ordered_at, note)
SELECT n, 1 + n % 500, N'open', n / 7.0, DATEADD(second, n, '2024-01-01'), CASE WHEN n % 10 = 0 THEN N'gift, ☃' END
FROM (SELECT TOP (5000) ROW_NUMBER() OVER (ORDER BY a.object_id) AS n FROM sys.all_objects AS a CROSS JOIN sys.all_objects AS b) AS numbers;
GO
