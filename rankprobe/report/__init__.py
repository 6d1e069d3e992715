"""What people read: tables, statistics, claims, plots and the HTML report, from finished runs."""
