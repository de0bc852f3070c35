-- Two titles had typing errors.
update categories set title = 'Shoes and boots' where slug = 'category-4';
update categories set title = 'Rainwear' where slug = 'category-5';
