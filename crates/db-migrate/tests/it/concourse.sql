-- Tables of Concourse's schema, as far as they have encrypted columns. The values were sealed by Python's `cryptography` in the form
-- of Concourse, under the keys of its own tests: `AES256Key-32Characters1234567890`, and for some rows, as during a rotation,
-- `AES128Key-16Char`. Where the nonce is null, the value is plain. The plain value of row N of a table is
-- {"table":"TABLE","n":N,"text":"grüße"}; row 9 is empty, and row 10 null.

create table teams (id serial primary key, legacy_auth text, nonce text);
insert into teams (id, legacy_auth, nonce) values
    (1, '87ba58090d08dcf3ea5d0fb9210e426046d23719498b139e2a64e44427874da0185b6f575d29e527808155d81d1b3f09074ba2bff760c38e', '9c6d608a927832ffab19c8ed'),
    (2, '175b9a21cb46a527dd46199685eb3130108414ad688d8365b28d7dbb05522c0a18cd6a9fab22b5734d4d23399250845dda3297f49b3f385c', 'dde20352b88ebb7f46d34556'),
    (3, '{"table":"teams","n":3,"text":"grüße"}', null),
    (4, '1b1c2e6e5342de708d9947ddabff94aeb6017058059242b3eed437628ec569f4e59f12725fd3bdd4188d07d0979cfd28d330aac968bb3ae2', '55fb902dc52c2245c53c3565'),
    (5, '49dca61a75a314b5f5e595618923fb60d795804cb5b65f8fb79d58fbceca7dbfca78e511165bf22ad039a9253c92bed024eec457c2263901', 'b071d7ece556fb78b632d382'),
    (6, '{"table":"teams","n":6,"text":"grüße"}', null),
    (7, 'ceb2f71abf8e72767b72fa1d89dfe3b6de11cb967b186f72d9a9f8d1fe43f7c57f9efaf0b27e066f56b55570d35da9413a431075eee67432', 'd084a2b8ba05a649ba0f9804'),
    (8, 'cf3965b9c339a85eac95eca73bff18eb982b1b24529d0ae75b512993e324165b8a7ef9f2ff5e097aec8184ab48258f2f327ab038ee6c25a2', '916af7c9cc98629113b144de'),
    (9, '3e15c89b9b72d471b433e98c0e6fb135', 'fac068c840ad60146008561c'),
    (10, null, null);

create table resources (id serial primary key, config text, nonce text);
insert into resources (id, config, nonce) values
    (1, 'a1fd27b20c7af5906e839c96334be73f4e667d4916ae8fcf1dfa1299d0ddf0efb4fcb1ad4db12967bff900f769c83974fc24202414955e8f907e9a4b', '25fcd1608638be5278834fa5'),
    (2, 'c2d4fe931d9051ebed34eb5b1b92e342850569507e987f90f9ce5c83bd137c81e8398c877b7092ea2d6469146cb3df44a12e86fbd11cae2c078c0696', 'fdf5320739abf5d33bee99ad'),
    (3, '{"table":"resources","n":3,"text":"grüße"}', null),
    (4, 'c3a0d359fec1cda8b959f06ccce65f07b65b4063ae5da6da87a900715a53432498c7d783b09e5a8d1d7dd4685ef3f60a5c94a9273b34cfcc96ae211e', '1436bc3aef25dc17f04b533a'),
    (5, 'a5da036b1aa58a5921803d2dcfacb8f8c489949a3c34434d2b80aa57495d280a9e7134c4779ca4faf125978f81ac122ac0faa15cb52d585e269118ef', '6cff07bf0e903f912ee64ef1'),
    (6, '{"table":"resources","n":6,"text":"grüße"}', null),
    (7, 'ae071f7d2a82c390e04da0598be2435a460dd2bc3bdc44dc0eb717add723ecc22528f342182a29d3e4d390718ab54b158b116d7b80611bf1284b4381', '7cddd69c6ec4c6d649c1e991'),
    (8, 'dfaf5e1109ca65c44a13d8380b014a9d641a030d506a9b3a3b43a5dd59ef3776508ffde381d3e21206607b2710ee63395564dc17350c33d80a63a82a', 'db5e489b428663c93a77be98'),
    (9, '7e1b0b91d2fe5d496c7a4b511e1afbf1', '069f8a57f433fde54484f2b5'),
    (10, null, null);

create table jobs (id serial primary key, config text, nonce text);
insert into jobs (id, config, nonce) values
    (1, '2c4d27ae176aa2f1959502bc13165befb62026919be23c1074372a42ca9ae04b70be7c16610c1913a88ee60a6b29d2b90e9f8ca9957ba3', '27b8b9901230780ede81c84d'),
    (2, 'ea6d29139ae200a90ecf06574c40a58687608bf883c8d6b8e5c16282b94bc19183e50b9abe71c0a2be8a046bdc8b08e5fb526461ba3f99', 'd08b94cdbe6893ecd4b16dfa'),
    (3, '{"table":"jobs","n":3,"text":"grüße"}', null),
    (4, '41a251e05c3b376f39ce0b4604893e7cec95279d391bde285ebeb6d9b931eb2b3c21ddbf45271da868658ef8b62076c327a47faf400bc2', 'e5678b964554118f55fb149c'),
    (5, 'be7b4167650b742a5d06fe6b7b704edc81e4fa61d1e4be5c3918b8e704cbdebc2c1b8171c025ed7b3536f8ecd259a759b00f6c69bdb53e', '658699c2405175d411a6494d'),
    (6, '{"table":"jobs","n":6,"text":"grüße"}', null),
    (7, '212c27dc2b54f2ee5ff2d56944fcd640ce07053d90a9b7194b7c5eec68e8d2b59a0baa99c2ef05a479562e81278e0cb87eb371c4889981', 'b2f4744a9f0bdb3c6bbe56d5'),
    (8, 'cfb241ae4f442ed1696de9e94498447f06c7b45db8baf2818863645fbb586f971d22c676fc3c6ef441b0ec786a70fc1b32333f4f3f827e', 'baafea409ee25212df7e9ee6'),
    (9, '38fa8a30a5f30cb9f59013078387d728', '380fa6602ba0697c55f28cb7'),
    (10, null, null);

create table resource_types (id serial primary key, config text, nonce text);
insert into resource_types (id, config, nonce) values
    (1, 'a38de972f766fbca10c9c068c1cd312b392fbfe14d896165bafcc1072b1c836c0e0b4ac30048e6825b9bb60df8b08981e0943a80e8c3b79ba41507e1ae1d5ad367', '3c0a3cd8d10dc6702dd47878'),
    (2, 'b1638ec9e96fa576ad3cde3b2327c64dbef89371af0460b8f0e6abc556a1ca5e9cb44b6dd3c0a398c0e1d563d9fe07d5200538c22056baa838667ae873c09cbb37', 'b632e5c23ef32dc553cae914'),
    (3, '{"table":"resource_types","n":3,"text":"grüße"}', null),
    (4, '2a553600d251e6036ae8a55a73574165b1e0b1591aef282e68263ab83ea0969217478198a475e9ace8306c8373fe8e93af6ffbf856bd0f3e74930c8597f654dbc1', '6a978bcb7f92b50071e6c415'),
    (5, '5437f048d4291b8b70f1a8fcdaa78de604d894b2aaba535b9e285c364c07fe7bd7d89dc14ab8df8f24708757779c6b2df90979d83b2ef6a22e7a79c0cc18b8a6f2', '52b8e726f5bd4d1090803cfe'),
    (6, '{"table":"resource_types","n":6,"text":"grüße"}', null),
    (7, '6af812306ed57dc51af2e515ae984b90855507b4b5911b1fbd2cd373e945266d54ff7800cf63fe131702e0e2867fc62cad21224e82d0781e75dede09b436553cec', '658d87cfb018e8e91dc1e3ec'),
    (8, 'be448cb921cf536782722f509092b1ebab56d8bc171b01e8074f84cbdfa23b969cbf898dfa10ecadac68f4099f546d169d9f6c5867ebeae7097988feb2018ef9e8', 'e02b205a74b26a85f9adf430'),
    (9, '33a9af16ec7d0e2061f3c00859b7ec17', 'e13ca7945dfa47a2c28a4490'),
    (10, null, null);

create table prototypes (id serial primary key, config text, nonce text);
insert into prototypes (id, config, nonce) values
    (1, 'c0feb6d012677997df87efb2417e5a8aa8cddc33ff1df841b7e3e109ec768b79f5805ab0d4cd8f455ab03ae0dc4fa9006c1818f9e90bdb48981b90df96', '4f8492d7bd07b38457de9075'),
    (2, '49b7f4d8456398d7b66e6b2a27e84d6fc985614dac2352555935f62edfb8a47632b19a1eeb969843e6eaaff00f27850604ce6a043e667f72ce01e8c70b', 'ce67ce526b4864ebd54332ec'),
    (3, '{"table":"prototypes","n":3,"text":"grüße"}', null),
    (4, '6621dea1f95b38905f85da15c2a828ed52eef1be3d6d68809d125892be0e2f6e2c542880e325de10ca9282a6d379d53ad698bad986202341f0b121706b', '691e9d98741095fb7c2480c0'),
    (5, '3070176671da7227b14d285c1c87fbaceb3b8f9b7d993ffbc5cf2ea1c81a6a00368036a20e226215917e00abe62e697290841cef247ac6fec879e4372e', '74443f8f14db1ed42cdd8aad'),
    (6, '{"table":"prototypes","n":6,"text":"grüße"}', null),
    (7, '80494a83215b083e596c41b5ea6b0e6547837c479c688298f499a75b2b98c1b0f474dbaed04e81d8926a7a4124e631065c101f90a43ccbae73df3b1228', 'abfd7232e84e8b39040a33d8'),
    (8, '6acae2b11c7115403fcd7d037e505cb66850be6c8cbabc705443d49ac4d9c96c908a085b94ed77b19829aae2df6062ee5839ac7a35aef3e933128e8813', '7c234b2ce97ea739c44a5bf8'),
    (9, '3037d2821e9916b36eb7b0dfff781d5c', '3ffd7935923283bc5de7aad3'),
    (10, null, null);

create table builds (id serial primary key, private_plan text, nonce text);
insert into builds (id, private_plan, nonce) values
    (1, '10d2cf06b52736412d109cbb83ab70afc5442a0a7dead8ec61e39c132d56c66402cc1021666d4fd65185f3b8d06dd8ec29bfedbce88ff9bd8e', '0f10c8a9b250135c8f21c3f3'),
    (2, 'ccf1719dbdf97c41f29c0d4bbbf305c846c49f91fc4e3adba0c032647b9d38115ec153f0f3d38afc08fe808ce928886c96b647ffdbe95085a1', 'bddd230cda2b9e94615a5e84'),
    (3, '{"table":"builds","n":3,"text":"grüße"}', null),
    (4, '8976233f517e65a62cb8ba1f0f508405f1eb1f460c4d22142e6e0d0668e46fba547a3e2e742097b4331fe06fce32fd1b2757d9cae888a71d49', '6a8f90fa9bc86908b800606f'),
    (5, '94656061a7719fe3994ed7279068d132ab21712a2f895def58303a6fa764426a972b71be5585f4dff18dfc0fe0fceeafa337a3d0d2fa932f6a', 'f603ae238a32961d871c5036'),
    (6, '{"table":"builds","n":6,"text":"grüße"}', null),
    (7, '2aec87f6779a5e02dcae243b7e4390b537f3310ee2ea477183dbcbf088b2ee75cc848f821dc5e69290e38eaa169694f6cf095e2effc4917006', '650fed9a2e12f87ad0e2f603'),
    (8, '718cdf79ab7cff1a82d77d7112709d0485b80875e9a082580facbc5d8a33bc8b6693332fe9fbbec3563354a291886d9733a2a55e6cfc64c8a9', 'f7f9815ebf7866eeb6a72c13'),
    (9, '289e805ab744a36caa45d767e42340e0', 'e754ff9a1fae229709eda92a'),
    (10, null, null);

create table cert_cache (domain text primary key, cert text, nonce text);
insert into cert_cache (domain, cert, nonce) values
    ('host1.example', '863f194b0c8bfb797da0322ece2e965f27ef771840171a8d22ded7d26fb6acf375f1289b92b64e6259e22ab28676fd44177ed0a2022001b1eb4d4d2fba', '6c3ed35dfca5d9b460ce945b'),
    ('host2.example', 'f46f4abfa090addcbb82bd02d737b0782346dce7c3d55113caf499d77e98d353ef51a1f7ee0f338deedabb2896512e5c32671652d5286ad973a3a4bcf1', '3b2fb13d553eceec265cd712'),
    ('host3.example', '{"table":"cert_cache","n":3,"text":"grüße"}', null),
    ('host4.example', '9987056d4d88a12a6fd872babec8af64e6d46b8fd98547a0fa32f73b5a8e19c54228029f3a363b5c756baf7665c463356faf331d6ad1ee6bf4192ab734', '9966209beaf662a66c2a69cc'),
    ('host5.example', 'a6f516e33d1ca32e6c373c2d1fb1a052d3f80cd6f6e557a3ad78fcfbc01a49ce59a17091fa94f7fa85962a1aea11d6994b35fe3023da4e92a6d9f9a186', '287fe83d9852a6aa2c27357e'),
    ('host6.example', '{"table":"cert_cache","n":6,"text":"grüße"}', null),
    ('host7.example', 'f7deec86f09f2e37d01b2bfdc225c9506d7215c0eb6185143eaafe33e95eb4bf5c7febd224d91d63e3d5f0c6e2662a31247b5096e7de3b81f8902d03f0', 'f25ab410c215d97d28bc93e8'),
    ('host8.example', 'cda6201f689f986bf7b61db6172b4fc2578f2751b2618b407fef7ad233258e37bdbb6a1390c0b2d56e58f14c2e9ae2f6eea2b7d025c7db924523d5758f', '22fbf3d3e25b05187344f5dc'),
    ('host9.example', '8804138205246d88d9c05a36bee3c082', 'fb570955e690ff7494f88f45'),
    ('host10.example', null, null);

create table pipelines (id serial primary key, var_sources text, nonce text);
insert into pipelines (id, var_sources, nonce) values
    (1, '268cab97a9f104b61b4c38e92137358f49774598bbed5c69bff9972233d8755ed27fcfdba82f2743a298667755ef3d1427b5864bdab0a2dcf991533f', '9ac0ebc56c8446010943bc3c'),
    (2, '6ab5faff002e9b2353aa94d6a4689e5e9438334eba0e646f54cedd2f517788fdda05eff71cf1718c323d3181340a30b50c6627af95c1b043b0d1dc7c', '726942b92b3a916a47419b05'),
    (3, '{"table":"pipelines","n":3,"text":"grüße"}', null),
    (4, '0167bafe555bb4fb60aacede7f1697420ace6c585234e67af88f437478983c8916fdb67fafbe1cd81e8c6aed476676ee36189043aba5cda2a4d5b59a', '6784a1d922ca5d4dbadea2ca'),
    (5, 'e7eb50f10d94d5bd6ae316dc2733acd887b3b29e936af527712cd495403e30d38980858ef2b48ae62e8751beefee5ba08d91bd29f79bcf1a6bc3b517', '608060724b60cfb1a2b974eb'),
    (6, '{"table":"pipelines","n":6,"text":"grüße"}', null),
    (7, 'b0f192654098bcbeae57c4175d3c2cbe6c1d7726209d62987eef8881bc021e772425650b276128ab4db6eb6afb23793b3f89569d215505a719d4806a', 'd3a788b8da6dbb6e12c3124c'),
    (8, '23277ea0c6b984307a648e31a9809a761f7444f2710d49f0e8e11780b2080f66ee6c1201fd3a6906a2aa5cfbc90ea8f1217035f2cffa81eed8c096c5', 'bbb37b0794a766f4fa5670a3'),
    (9, 'b300c66290bc4f6a6408b0294b8fabab', '8c11b95b5eb3b8d95760d4eb'),
    (10, null, null);
