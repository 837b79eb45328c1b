"""What people read: rows, tables, CSV, spreadsheets and pictures made from the library's values."""
