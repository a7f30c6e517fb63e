"""What finished runs say together: tables, intervals, notes. Reads run folders only; knows nothing of torch."""
